//! The compose file: its services, started in the order and under the conditions that it names, with
//! their commands, environments, volumes and health checks.

use crate::farm::{Farm, finished};
use crate::files::{deploy, strings, yaml};
use crate::image::Image;
use crate::prometheus;
use longtake_tests::container::Container;
use longtake_tests::services::tool;
use serde_json::Value;
use std::process::Command;

/// The file.
pub struct Compose(Value);

/// A service that cannot be run here: there is no Grafana in any registry that the tests install
/// from. Its files are checked against its own types instead; see `schemas`.
const NOT_RUN: &[&str] = &["grafana"];

impl Compose {
    pub fn read() -> Self {
        Self(yaml("compose.yaml").remove(0))
    }

    pub fn service(&self, name: &str) -> &Value {
        let service = &self.0["services"][name];
        assert!(service.is_object(), "no service {name}");
        service
    }

    /// A service's variables.
    pub fn environment(&self, name: &str) -> Vec<(String, String)> {
        let variables = self.service(name)["environment"].as_object();
        let pair = |(name, value): (&String, &Value)| {
            let value = value.as_str().expect("text");
            (name.clone(), interpolated(value))
        };
        variables.into_iter().flatten().map(pair).collect()
    }

    /// The words that a service runs, in the form of a list or of a shell's line.
    fn words(&self, name: &str, image: Vec<String>) -> Vec<String> {
        let service = self.service(name);
        let mut words = match &service["entrypoint"] {
            Value::Null => image,
            entrypoint => strings(entrypoint),
        };
        words.extend(strings(&service["command"]));
        words.iter().map(|word| interpolated(word)).collect()
    }

    /// Its image, with what it is given, and what it runs.
    fn container(&self, farm: &Farm, service: &str, name: &str) -> (Container, Vec<String>) {
        let image = self.service(service)["image"].as_str().expect("an image");
        let (repository, tag) = image.split_once(':').unwrap_or((image, ""));
        let (mut container, entrypoint) = match repository {
            "longtake" => {
                let image = Image::read();
                (image.container(farm, name), image.entrypoint())
            }
            "quay.io/coreos/etcd" => (farm.container(name), vec![]),
            "chrislusf/seaweedfs" => {
                let weed = tool("tools/seaweedfs/bin/weed");
                let version = finished(Command::new(&weed).arg("version")).stdout;
                let version = String::from_utf8(version).expect("text");
                assert!(version.contains(&format!(" {tag} ")), "{image}: {version}");
                let container = farm.container(name);
                let container = container.mounted(&weed, "/usr/local/bin/weed", true);
                (container, vec!["weed".to_owned()])
            }
            "prom/prometheus" => {
                let program = |name: &str| tool(&format!("tools/prometheus/usr/bin/{name}"));
                let container = farm.container(name);
                let data = container.outside("/prometheus");
                std::fs::create_dir_all(&data).expect("a folder");
                std::os::unix::fs::chown(&data, Some(65534), Some(65534)).expect("given away");
                let container = container
                    .mounted(&program("prometheus"), "/usr/local/bin/prometheus", true)
                    .mounted(&program("promtool"), "/usr/local/bin/promtool", true)
                    .for_user("nobody", "/prometheus");
                (container, vec!["prometheus".to_owned()])
            }
            other => panic!("nobody knows how to run {other}"),
        };
        for volume in strings(&self.service(service)["volumes"]) {
            container = self.with_volume(farm, container, &volume);
        }
        container = container.with_environment(self.environment(service));
        (container, self.words(service, entrypoint))
    }

    fn with_volume(&self, farm: &Farm, container: Container, volume: &str) -> Container {
        let mut parts = volume.split(':');
        let (source, target) = (parts.next().expect("a source"), parts.next());
        let (target, read_only) = (target.expect("a target"), parts.next() == Some("ro"));
        match source.strip_prefix("./") {
            Some("secrets") => container.mounted(&farm.path("secrets"), target, read_only),
            Some(file) => container.mounted(&deploy(file), target, read_only),
            None => {
                let known = &self.0["volumes"][source];
                assert!(known.is_object(), "no volume {source}");
                container.with_volume(&farm.path("volumes").join(source), target)
            }
        }
    }

    /// Starts all containers of a service, or runs it to its end where others wait for that, and
    /// waits until it is healthy by its own check.
    pub fn start(&self, farm: &mut Farm, service: &str) {
        let replicas = self.service(service).pointer("/deploy/replicas");
        for index in 1..=replicas.and_then(Value::as_u64).unwrap_or(1) {
            let name = format!("{service}-{index}");
            let (container, words) = self.container(farm, service, &name);
            if self.is_awaited(service, "service_completed_successfully") {
                farm.run(&container, &words);
                continue;
            }
            farm.start(&name, &container, &words);
            let check = &self.service(service)["healthcheck"];
            if check.is_object() {
                let words = check_words(&check["test"]);
                farm.until(&format!("health of {name}"), |farm| {
                    let out = container.command(&farm.network, &words).output();
                    out.expect("nsenter runs").status.success().then_some(())
                });
            }
        }
    }

    /// Whether another service waits for this one in that way.
    fn is_awaited(&self, service: &str, condition: &str) -> bool {
        let services = self.0["services"].as_object().expect("services");
        services
            .values()
            .any(|other| other["depends_on"][service]["condition"] == condition)
    }

    /// The services, each after those that it depends on.
    fn in_order(&self) -> Vec<&str> {
        let services = self.0["services"].as_object().expect("services");
        let mut order: Vec<&str> = Vec::new();
        while order.len() < services.len() {
            let ready = services.iter().find(|(name, service)| {
                let needs = service["depends_on"].as_object();
                let mut needs = needs.into_iter().flatten();
                !order.contains(&name.as_str()) && needs.all(|(n, _)| order.contains(&n.as_str()))
            });
            order.push(ready.expect("no circle, and only services that exist").0);
        }
        order
    }
}

/// The words of a health check.
fn check_words(test: &Value) -> Vec<String> {
    let words = strings(test);
    match words.split_first() {
        Some((form, rest)) if form == "CMD" => rest.to_vec(),
        Some((form, [line])) if form == "CMD-SHELL" => {
            vec!["/bin/sh".to_owned(), "-c".to_owned(), interpolated(line)]
        }
        _ => panic!("{test} is no health check"),
    }
}

/// Puts in what an operator has set, which is nothing: `${NAME:-DEFAULT}` is its default, `$$` a
/// dollar.
fn interpolated(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (variable, after) = rest
            .strip_prefix('{')
            .and_then(|rest| rest.split_once('}'))
            .unwrap_or_else(|| panic!("{text}: a variable without braces"));
        let (_, default) = variable
            .split_once(":-")
            .unwrap_or_else(|| panic!("{text}: a variable without a default"));
        out += default;
        rest = after;
    }
    out + rest
}

#[test]
fn the_farm_of_the_compose_file_renders() {
    let (mut farm, compose) = (Farm::new(), Compose::read());
    let order = compose.in_order();
    assert_eq!(order.len(), 7, "{order:?}");
    for service in order.iter().filter(|name| !NOT_RUN.contains(name)) {
        compose.start(&mut farm, service);
    }
    // The port that users reach is the one that the coordinator listens at.
    let ports = strings(&compose.service("coordinator")["ports"]);
    assert_eq!(ports, ["7341:7341"]);
    farm.render("https://coordinator:7341", 60);
    let figures = "https://coordinator:7342/metrics";
    let shown = farm.figures(figures, "viewer.token").expect("the figures");
    assert!(shown.contains("longtake_workers 2\n"), "{shown}");
    prometheus::explained(&shown);
    assert_eq!(
        farm.figures(figures, "worker.token"),
        None,
        "not for a worker"
    );
    // All that the configuration names is there, token and certificate included.
    let (prometheus, _) = compose.container(&farm, "prometheus", "promtool");
    let check = "promtool check config /etc/prometheus/prometheus.yml";
    let words: Vec<_> = check.split(' ').map(str::to_owned).collect();
    farm.run(&prometheus, &words);
    prometheus::answers(&mut farm);
}

#[test]
fn what_the_compose_file_names_is_there() {
    let compose = Compose::read();
    let build = &compose.service("coordinator")["build"];
    let context = build["context"].as_str().expect("a context");
    let dockerfile = build["dockerfile"].as_str().expect("a file");
    assert!(deploy(context).join(dockerfile).is_file());
    for (name, service) in compose.0["services"].as_object().expect("services") {
        for volume in strings(&service["volumes"]) {
            if let Some(file) = volume.strip_prefix("./") {
                let file = file.split(':').next().expect("a path");
                assert!(
                    file == "secrets" || deploy(file).exists(),
                    "{name} mounts {file}"
                );
            }
        }
    }
}
