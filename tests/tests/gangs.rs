//! Windows that ranks of two machines share, while ranks are lost.

use longtake_tests::product::last_json;
use serde_json::Value;
use std::process::Command;

/// Two rounds of what `cargo xtask gangs` plays twenty times: in the middle of a step, a rank is killed,
/// and another one stands still. The films are those that are made alone, and nothing is left behind.
/// Prints how long gangs took to form, and to form anew.
#[test]
fn films_survive_the_loss_of_ranks() {
    let out = Command::new(env!("CARGO_BIN_EXE_gangs"))
        .args(["--rounds=2", "--seed=6"])
        .output();
    let out = out.expect("it runs");
    let report: Value = last_json(&out).unwrap_or_else(|story| panic!("{story}"));
    println!("{}", String::from_utf8_lossy(&out.stderr));
    let rounds = report["rounds"].as_array().expect("rounds");
    let whats: Vec<_> = rounds
        .iter()
        .filter_map(|round| round["what"].as_str())
        .collect();
    assert!(
        whats[0].starts_with("KillRank") && whats[1].starts_with("StopRank"),
        "{whats:?}"
    );
    for round in rounds {
        assert_eq!(round["equal"], true, "{round}");
    }
}
