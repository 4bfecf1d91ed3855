//! The manifests: what a kubelet would start, with the environment, secrets and names that it would
//! find, and the probes that it would ask.

use crate::compose::Compose;
use crate::farm::{Farm, operations};
use crate::files::{strings, yaml};
use crate::image::Image;
use longtake_tests::container::Container;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A document of a file.
fn object(file: &str, kind: &str) -> Value {
    let documents = yaml(&format!("kubernetes/{file}.yaml"));
    let found = documents
        .into_iter()
        .find(|document| document["kind"] == kind);
    found.unwrap_or_else(|| panic!("{file} has no {kind}"))
}

/// The pod of a manifest.
fn pod(object: &Value) -> Value {
    let paths = [
        "/spec/template/spec",
        "/spec/leaderWorkerTemplate/workerTemplate/spec",
    ];
    let pod = paths.iter().find_map(|path| object.pointer(path));
    pod.expect("a pod").clone()
}

/// The secrets that docs/operations.md tells an operator to make: what each holds.
fn secrets() -> BTreeMap<String, Vec<String>> {
    let page = operations().replace("\\\n", " ");
    let mut secrets = BTreeMap::new();
    for line in page.lines().filter(|line| line.contains("create secret")) {
        let (_, rest) = line.split_once("generic ").expect("a generic secret");
        let mut words = rest.split_whitespace();
        let name = words.next().expect("a name").to_owned();
        let keys = words.filter_map(|word| {
            let (_, key) = word
                .split_once("--from-file=")
                .or_else(|| word.split_once("--from-literal="))?;
            Some(key.split('=').next().unwrap_or_default().to_owned())
        });
        secrets.insert(name, keys.collect());
    }
    secrets
}

/// The coordinator and the workers of the manifests in one network.
struct Cluster {
    farm: Farm,
    image: Image,
    /// Where the store is and how one gets in.
    store: BTreeMap<String, String>,
}

impl Cluster {
    /// Starts the containers of a pod and returns the name that each has.
    fn start(&mut self, pod: &Value, name: &str) {
        let containers = pod["containers"].as_array().expect("containers");
        assert_eq!(containers.len(), 1, "the tests start one");
        let (container, words) = self.container(pod, &containers[0], name);
        self.farm.start(name, &container, &words);
    }

    fn container(&self, pod: &Value, spec: &Value, name: &str) -> (Container, Vec<String>) {
        let user = &pod["securityContext"]["runAsUser"];
        let mut container = self.image.container(&self.farm, name);
        container = container.for_user(&user.to_string(), "/var/lib/longtake");
        for mount in spec["volumeMounts"].as_array().expect("mounts") {
            let path = mount["mountPath"].as_str().expect("a path");
            let source = self.volume(pod, mount["name"].as_str().expect("a name"), name);
            container = if mount["readOnly"] == true {
                container.mounted(&source, path, true)
            } else {
                container.with_volume(&source, path)
            };
        }
        let variables = self.variables(spec, name);
        let mut words = self.image.entrypoint();
        // A kubelet puts variables into a container's arguments.
        words.extend(strings(&spec["args"]).into_iter().map(|word| {
            let put = |word: String, (name, value): (&String, &String)| {
                word.replace(&format!("$({name})"), value)
            };
            variables.iter().fold(word, put)
        }));
        assert!(!words.iter().any(|word| word.contains("$(")), "{words:?}");
        (container.with_environment(variables), words)
    }

    /// Where a pod's volume lies: a secret's keys as files, or an empty folder.
    fn volume(&self, pod: &Value, volume: &str, name: &str) -> PathBuf {
        let volumes = pod["volumes"].as_array().expect("volumes");
        let found = volumes.iter().find(|other| other["name"] == volume);
        let found = found.unwrap_or_else(|| panic!("no volume {volume}"));
        let folder = self.farm.path("volumes").join(format!("{name}-{volume}"));
        let Some(secret) = found["secret"]["secretName"].as_str() else {
            assert!(found["emptyDir"].is_object(), "{found}");
            return folder;
        };
        let keys = secrets().remove(secret);
        std::fs::create_dir_all(&folder).expect("a folder");
        for key in keys.unwrap_or_else(|| panic!("operations.md makes no secret {secret}")) {
            let file = self.farm.path("secrets").join(&key);
            std::fs::copy(&file, folder.join(&key)).unwrap_or_else(|e| panic!("{key}: {e}"));
        }
        folder
    }

    fn variables(&self, spec: &Value, name: &str) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        for source in spec["envFrom"].as_array().into_iter().flatten() {
            let secret = source["secretRef"]["name"].as_str().expect("a secret");
            for key in &secrets()[secret] {
                assert!(self.store.contains_key(key), "{secret} has {key}");
            }
            // All of it, for the way to this store is not encrypted, which the page has no flag for.
            variables.extend(self.store.clone());
        }
        for variable in spec["env"].as_array().into_iter().flatten() {
            let field = &variable["valueFrom"]["fieldRef"]["fieldPath"];
            let value = match variable["value"].as_str() {
                Some(value) => value.to_owned(),
                None if field == "metadata.name" => name.to_owned(),
                None => panic!("nobody knows {variable}"),
            };
            let name = variable["name"].as_str().expect("a name");
            variables.insert(name.to_owned(), value);
        }
        variables
    }

    /// Waits until a probe has been answered as a kubelet wants it: without a look at the
    /// certificate.
    fn probe(&mut self, spec: &Value, which: &str) {
        let probe = &spec[which];
        let get = &probe["httpGet"];
        let ports = spec["ports"].as_array().expect("ports");
        let port = ports.iter().find(|port| port["name"] == get["port"]);
        let port =
            &port.unwrap_or_else(|| panic!("{which}: no port {}", get["port"]))["containerPort"];
        let scheme = get["scheme"].as_str().unwrap_or("HTTP").to_lowercase();
        let path = get["path"].as_str().expect("a path");
        let seconds = probe["timeoutSeconds"].as_u64().unwrap_or(1).to_string();
        let url = format!("{scheme}://127.0.0.1:{port}{path}");
        self.farm.until(&url, |farm| {
            farm.page(&url, &["--insecure", "--max-time", &seconds])
        });
    }
}

#[test]
fn the_pods_of_the_manifests_render() {
    let mut farm = Farm::new();
    let compose = Compose::read();
    let store = compose.environment("coordinator").into_iter().collect();
    for service in ["etcd", "s3", "bucket"] {
        compose.start(&mut farm, service);
    }
    let mut cluster = Cluster {
        farm,
        image: Image::read(),
        store,
    };
    let (deployment, service) = (
        object("coordinator", "Deployment"),
        object("coordinator", "Service"),
    );
    let coordinator = pod(&deployment);
    cluster.start(&coordinator, "coordinator");
    let spec = &coordinator["containers"][0];
    cluster.probe(spec, "readinessProbe");
    cluster.probe(spec, "livenessProbe");

    let set = object("workers", "LeaderWorkerSet");
    let name = set["metadata"]["name"].as_str().expect("a name");
    let workers = pod(&set);
    let replicas = set["spec"]["replicas"].as_u64().expect("a number");
    for index in 0..replicas {
        // As the controller names the pods of its groups.
        cluster.start(&workers, &format!("{name}-{index}"));
    }
    let service_name = service["metadata"]["name"].as_str().expect("a name");
    let port = |name: &str| {
        let ports = service["spec"]["ports"].as_array().expect("ports");
        let port = ports.iter().find(|port| port["name"] == name);
        let port = port.unwrap_or_else(|| panic!("no port {name}"));
        // What the service sends on to is a port of the container, under its name.
        let target = &port["targetPort"];
        let inside = spec["ports"].as_array().expect("ports");
        let inside = inside.iter().find(|inside| inside["name"] == *target);
        let inside = inside.unwrap_or_else(|| panic!("no port {target}"));
        assert_eq!(
            inside["containerPort"], port["port"],
            "one network has both"
        );
        port["port"].clone()
    };
    let figures = format!("https://{service_name}:{}/metrics", port("http"));
    let all = format!("longtake_workers {replicas}\n");
    cluster.farm.until("workers", |farm| {
        let figures = farm.figures(&figures, "viewer.token")?;
        figures.contains(&all).then_some(())
    });
    let url = format!("https://{service_name}:{}", port("grpc"));
    cluster.farm.render(&url, 33);
}

#[test]
fn whoever_is_scaled_away_has_time_to_finish() {
    let pod = pod(&object("workers", "LeaderWorkerSet"));
    let grace = pod["terminationGracePeriodSeconds"].as_u64();
    let args = strings(&pod["containers"][0]["args"]);
    let drain = args
        .iter()
        .find_map(|word| word.strip_prefix("--drain-seconds="));
    let drain: u64 = drain.expect("a deadline").parse().expect("a number");
    assert!(grace >= Some(drain + 10), "{grace:?} for {drain}");
}

#[test]
fn what_scales_the_workers_names_them() {
    let (scaled, workers) = (
        object("scaling", "ScaledObject"),
        object("workers", "LeaderWorkerSet"),
    );
    let target = &scaled["spec"]["scaleTargetRef"];
    assert_eq!(target["name"], workers["metadata"]["name"]);
    assert_eq!(target["kind"], workers["kind"]);
    assert_eq!(target["apiVersion"], workers["apiVersion"]);
    let trigger = &scaled["spec"]["triggers"][0]["metadata"];
    let threshold = trigger["threshold"].as_str().map(str::parse::<f64>);
    assert!(
        matches!(threshold, Some(Ok(seconds)) if seconds > 0.0),
        "{trigger}"
    );
    let deployment = object("coordinator", "Deployment");
    assert_eq!(
        deployment.pointer("/spec/selector/matchLabels"),
        deployment.pointer("/spec/template/metadata/labels")
    );
    let service = object("coordinator", "Service");
    assert_eq!(
        service.pointer("/spec/selector"),
        deployment.pointer("/spec/template/metadata/labels")
    );
}
