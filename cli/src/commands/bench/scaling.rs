//! `bench scaling`: what ranks bring, on paper, beside what was measured.

use crate::terminal::print;
use anyhow::Result;
use longtake_core::scaling::{
    Card, H100_LONGTAKE, H200_DIFFUSERS, HOSTS_OF_8, INFINIBAND, MEASURED, NVLINK, efficiency, step,
};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Windows of 121 frames: both passes of 1216x704 and its size, and both passes of 3840x2176.
const TOKENS: [usize; 5] = [5_600, 13_376, 22_400, 56_880, 227_520];
const RANKS: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Bytes of an exchanged value: bf16.
const VALUE_BYTES: f64 = 2.0;

/// Flags of `bench scaling`.
#[derive(clap::Args)]
pub struct ScalingArgs {
    /// Print one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Computes and prints.
pub fn run(args: &ScalingArgs) -> Result<()> {
    let cards = [H100_LONGTAKE, H200_DIFFUSERS];
    if args.json {
        let modelled: Vec<Value> = cards.iter().flat_map(rows).collect();
        return print(json!({ "measured": measured(), "modelled": modelled }));
    }
    let mut text = String::new();
    for card in &cards {
        table(&mut text, card)?;
    }
    writeln!(text, "\nmeasured, and what the model says:")?;
    writeln!(
        text,
        "| what | tokens | ranks | measured ms | model ms |\n|---|---|---|---|---|"
    )?;
    for row in measured() {
        let text_of = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let ms = |key: &str| row[key].as_f64().unwrap_or_default();
        let (measured, model) = (ms("measured_ms"), ms("model_ms"));
        let card = text_of("card");
        let (tokens, ranks) = (&row["tokens"], &row["ranks"]);
        writeln!(
            text,
            "| {card} | {tokens} | {ranks} | {measured:.0} | {model:.0} |"
        )?;
    }
    print(text.trim_end())
}

/// By tokens and ranks, the milliseconds of a step and the efficiency over each network.
fn table(text: &mut String, card: &Card) -> Result<()> {
    let networks = [NVLINK, HOSTS_OF_8, INFINIBAND];
    writeln!(
        text,
        "\n{}, not overlapped, bf16 exchanged: ms a step (efficiency)",
        card.name
    )?;
    write!(text, "| tokens | ranks | sent a rank, GB")?;
    for network in &networks {
        write!(text, " | {}", network.name)?;
    }
    writeln!(text, " |\n|---|---|---|---|---|---|")?;
    for (tokens, ranks) in pairs() {
        let Some(first) = step(card, &NVLINK, tokens, ranks, VALUE_BYTES) else {
            continue;
        };
        write!(text, "| {tokens} | {ranks} | {:.2}", first.sent_bytes / 1e9)?;
        for network in &networks {
            let step = step(card, network, tokens, ranks, VALUE_BYTES);
            let share = efficiency(card, network, tokens, ranks, VALUE_BYTES);
            if let (Some(step), Some(share)) = (step, share) {
                write!(
                    text,
                    " | {:.0} ({:.0}%)",
                    step.seconds() * 1e3,
                    share * 100.0
                )?;
            }
        }
        writeln!(text, " |")?;
    }
    Ok(())
}

fn pairs() -> impl Iterator<Item = (usize, usize)> {
    TOKENS
        .into_iter()
        .flat_map(|tokens| RANKS.map(|ranks| (tokens, ranks)))
}

fn rows(card: &Card) -> Vec<Value> {
    let networks = [NVLINK, HOSTS_OF_8, INFINIBAND];
    let of = |(tokens, ranks)| networks.map(|network| (tokens, ranks, network));
    let row = |(tokens, ranks, network)| {
        let step = step(card, &network, tokens, ranks, VALUE_BYTES)?;
        Some(json!({
            "card": card.name,
            "network": network.name,
            "tokens": tokens,
            "ranks": ranks,
            "ms": step.seconds() * 1e3,
            "linear_ms": step.linear_s * 1e3,
            "attention_ms": step.attention_s * 1e3,
            "exchange_ms": step.exchange_s * 1e3,
            "sent_bytes": step.sent_bytes,
            "efficiency": efficiency(card, &network, tokens, ranks, VALUE_BYTES),
        }))
    };
    pairs().flat_map(of).filter_map(row).collect()
}

fn measured() -> Vec<Value> {
    let row = |m: &longtake_core::scaling::Measured| {
        let step = step(&m.card, &NVLINK, m.tokens, m.ranks, VALUE_BYTES)?;
        Some(json!({
            "card": m.card.name,
            "tokens": m.tokens,
            "ranks": m.ranks,
            "measured_ms": m.seconds * 1e3,
            "model_ms": step.seconds() * 1e3,
        }))
    };
    MEASURED.iter().filter_map(row).collect()
}
