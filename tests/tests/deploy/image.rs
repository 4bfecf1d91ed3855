//! The image that the Dockerfile describes, as far as it can be made without an engine: its last
//! stage, with the program that the tests have built.

use crate::farm::{Farm, finished};
use crate::files::{deploy, repository, text};
use longtake_tests::container::Container;
use longtake_tests::product;
use longtake_tests::services::tool;
use std::path::PathBuf;
use std::process::Command;

/// What the Dockerfile's last stage says.
pub struct Image {
    /// Whom it is made from.
    pub bases: Vec<String>,
    /// The last stage's instructions with their arguments.
    instructions: Vec<(String, String)>,
}

impl Image {
    pub fn read() -> Self {
        let text = text("Dockerfile");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let joined = lines.collect::<Vec<_>>().join("\n").replace("\\\n", " ");
        let (mut bases, mut instructions) = (Vec::new(), Vec::new());
        for line in joined.lines().filter(|line| !line.trim().is_empty()) {
            let (word, rest) = line.split_once(' ').expect("an instruction");
            if word == "FROM" {
                bases.push(rest.split(' ').next().expect("an image").to_owned());
                instructions.clear();
            } else {
                instructions.push((word.to_owned(), rest.trim().to_owned()));
            }
        }
        Self {
            bases,
            instructions,
        }
    }

    fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        let of = move |(name, rest): &'a (String, String)| (name == word).then_some(rest.as_str());
        self.instructions.iter().filter_map(of)
    }

    fn one<'a>(&'a self, word: &'a str) -> &'a str {
        self.all(word).next().unwrap_or_else(|| panic!("no {word}"))
    }

    /// What comes before a command's words.
    pub fn entrypoint(&self) -> Vec<String> {
        serde_json::from_str(self.one("ENTRYPOINT")).expect("the form with brackets")
    }

    /// What the build stage has at `path`, as far as it comes from this repository.
    fn built(path: &str) -> PathBuf {
        let relative = path.strip_prefix("/source/").expect("from the sources");
        match relative {
            "target/release/longtake" => product::binary(),
            other => repository().join(other),
        }
    }

    /// A container of it. The installation of packages is left out: they are this machine's.
    pub fn container(&self, farm: &Farm, name: &str) -> Container {
        let mut container = farm.container(name);
        for words in self.all("RUN").flat_map(|line| line.split("&&")) {
            let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
            if words[0] != "apt-get" && words[0] != "rm" {
                farm.run(&container, &words);
            }
        }
        for line in self.all("COPY") {
            let words: Vec<_> = line.split_whitespace().collect();
            let [from, source, target] = words[..] else {
                panic!("COPY {line}: three words are expected");
            };
            assert_eq!(from, "--from=build");
            container = container.mounted(&Self::built(source), target, true);
        }
        let pair = |line: &str| {
            let (name, value) = line.split_once('=').expect("NAME=VALUE");
            (name.to_owned(), value.to_owned())
        };
        container
            .with_environment(self.all("ENV").map(pair))
            .for_user(self.one("USER"), self.one("WORKDIR"))
    }
}

#[test]
fn nothing_is_wrong_with_the_dockerfile() {
    let mut lint = Command::new(tool("tools/hadolint/bin/hadolint"));
    finished(
        lint.args(["--failure-threshold", "style"])
            .arg(deploy("Dockerfile")),
    );
    // What is built is built with a compiler that can, and runs on the system that it was built on.
    let manifest = std::fs::read_to_string(repository().join("Cargo.toml")).expect("a manifest");
    let mut lines = manifest.lines();
    let wanted = lines.find_map(|line| line.strip_prefix("rust-version = "));
    let wanted = wanted.expect("a version").trim_matches('"');
    let bases = Image::read().bases;
    assert_eq!(
        bases,
        [
            format!("rust:{wanted}-bookworm"),
            "debian:bookworm-slim".to_owned()
        ]
    );
}
