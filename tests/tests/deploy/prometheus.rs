//! Prometheus, its alerts, and whoever asks it: the dashboard, and what scales the workers.

use crate::farm::{Farm, finished, operations};
use crate::files::{deploy, strings, text, yaml};
use longtake_tests::services::tool;
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

const SERVER: &str = "http://prometheus:9090";

/// The rules of the alerts' file.
fn rules() -> Vec<Value> {
    let groups = &yaml("prometheus/alerts.yml")[0]["groups"];
    let groups = groups.as_array().expect("groups");
    let rules = groups
        .iter()
        .flat_map(|g| g["rules"].as_array().expect("rules"));
    rules.cloned().collect()
}

fn panels() -> Vec<Value> {
    let dashboard = text("grafana/dashboards/longtake.json");
    let mut dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let panels = dashboard["panels"].take();
    panels.as_array().expect("panels").clone()
}

/// What the dashboard's panels and the workers' scaling ask.
fn questions() -> Vec<String> {
    let panels = panels();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().expect("targets"));
    let mut questions: Vec<String> = targets
        .map(|target| target["expr"].as_str().expect("an expression").to_owned())
        .collect();
    let scaling = &yaml("kubernetes/scaling.yaml")[0]["spec"]["triggers"];
    for trigger in scaling.as_array().expect("triggers") {
        let question = trigger["metadata"]["query"].as_str();
        questions.push(question.expect("a query").to_owned());
    }
    questions
}

/// Names of the farm's figures in some text.
fn figures(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|name| name.starts_with("longtake_"))
        .map(str::to_owned)
        .collect()
}

/// The `data` of an answer of Prometheus' API.
fn ask(farm: &Farm, path: &str, flags: &[&str]) -> Option<Value> {
    let page = farm.page(&format!("{SERVER}/api/v1/{path}"), flags)?;
    let mut answer: Value = serde_json::from_str(&page).expect("JSON");
    assert_eq!(answer["status"], "success", "{path}: {answer}");
    Some(answer["data"].take())
}

/// How many series answer a question, which must be one that Prometheus can answer.
fn series(farm: &Farm, question: &str) -> usize {
    let flag = format!("query={question}");
    let data = ask(farm, "query", &["--get", "--data-urlencode", &flag]);
    let data = data.unwrap_or_else(|| panic!("Prometheus refuses: {question}"));
    data["result"].as_array().expect("a result").len()
}

/// The Prometheus of a farm that has rendered gets in with its token, knows the alerts, and has an
/// answer to whatever dashboard and scaling ask.
pub fn answers(farm: &mut Farm) {
    farm.until("target that is up", |farm| {
        let targets = ask(farm, "targets", &[])?;
        let target = targets["activeTargets"].as_array()?.first()?;
        (target["health"] == "up").then_some(())
    });
    let evaluated = farm.until("evaluated rules", |farm| {
        let groups = ask(farm, "rules", &[])?["groups"].take();
        let rules: Vec<_> = groups
            .as_array()?
            .iter()
            .flat_map(|group| group["rules"].as_array().expect("rules").clone())
            .collect();
        let done = rules.iter().all(|rule| rule["health"] != "unknown");
        done.then_some(rules)
    });
    for (rule, found) in rules().iter().zip(&evaluated) {
        assert_eq!(rule["alert"], found["name"]);
        assert_eq!(found["health"], "ok", "{found}");
        assert_ne!(found["state"], "firing", "{found}");
    }
    assert_eq!(rules().len(), evaluated.len());
    for rule in rules() {
        series(farm, rule["expr"].as_str().expect("an expression"));
    }
    // A rate takes two looks at the farm.
    for question in questions() {
        farm.until(&format!("answer to {question}"), |farm| {
            (series(farm, &question) > 0).then_some(())
        });
    }
}

/// The figures of a farm are those that are asked for, and those that the page explains.
pub fn explained(shown: &str) {
    let there = figures(shown);
    for file in [
        "grafana/dashboards/longtake.json",
        "prometheus/alerts.yml",
        "kubernetes/scaling.yaml",
    ] {
        let asked = figures(&text(file));
        let missing: Vec<_> = asked.difference(&there).collect();
        assert!(
            !asked.is_empty() && missing.is_empty(),
            "{file}: {missing:?}"
        );
    }
    assert_eq!(figures(&operations()), there);
}

fn promtool(words: &[&str]) {
    let mut command = Command::new(tool("tools/prometheus/usr/bin/promtool"));
    finished(command.args(words).current_dir(deploy("prometheus")));
}

#[test]
fn alerts_fire_when_they_should() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
    // Of every alert there is a case in which it fires, and one in which it does not.
    let tests = &yaml("prometheus/alerts_test.yml")[0]["tests"];
    let tests = tests.as_array().expect("tests").iter();
    let cases: Vec<_> = tests
        .flat_map(|test| test["alert_rule_test"].as_array().expect("cases"))
        .collect();
    for rule in rules() {
        for fires in [true, false] {
            let found = cases.iter().any(|case| {
                let alerts = case["exp_alerts"].as_array().expect("alerts");
                case["alertname"] == rule["alert"] && alerts.is_empty() != fires
            });
            assert!(found, "{}: no case with {fires}", rule["alert"]);
        }
    }
}

#[test]
fn the_configuration_names_what_is_there() {
    promtool(&["check", "config", "--syntax-only", "prometheus.yml"]);
    let config = &yaml("prometheus/prometheus.yml")[0];
    for file in strings(&config["rule_files"]) {
        assert!(deploy("prometheus").join(&file).is_file(), "{file}");
    }
    let sources = &yaml("grafana/provisioning/datasources/prometheus.yaml")[0]["datasources"];
    assert_eq!(sources[0]["url"], SERVER);
    for panel in panels() {
        assert_eq!(panel["datasource"]["uid"], sources[0]["uid"], "{panel}");
    }
}
