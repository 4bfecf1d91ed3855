//! Rewriting of short prompts by a language model that the user runs: any server with OpenAI's
//! chat completions. Nothing is sent anywhere unless `--enhance-url` names it.

use anyhow::{Context, Result, bail};
use longtake_common::pipeline::Enhancement;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most bytes of an answer: a prompt is cut to a few hundred tokens anyway.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Environment variable with the server's key.
const KEY_VARIABLE: &str = "LONGTAKE_ENHANCE_KEY";
/// What the model is asked for.
const INSTRUCTION: &str = "Rewrite the user's idea as a prompt for a video model. Describe in one \
paragraph of at most 150 words, in the present tense, what is seen: the main action first, then \
movements and gestures, the looks of people and things, the surroundings, camera and light. Keep \
to the idea, add no sound and no text. Answer with the paragraph alone.";

/// Where prompts are rewritten.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct EnhanceArgs {
    /// Have a short prompt rewritten by a server with OpenAI's API, such as
    /// http://127.0.0.1:11434/v1; its key, if it needs one, is in LONGTAKE_ENHANCE_KEY
    #[arg(long, value_name = "URL")]
    enhance_url: Option<String>,
    /// Model that the server is asked for [default: the pipeline file's]
    #[arg(long, value_name = "NAME", requires = "enhance_url")]
    enhance_model: Option<String>,
}

/// What becomes of a prompt.
pub struct Enhanced {
    /// The prompt to render.
    pub prompt: String,
    /// What its user should know.
    pub notice: Option<String>,
}

impl EnhanceArgs {
    /// The prompt to render instead of `prompt`.
    ///
    /// # Errors
    /// When the server cannot be asked, or answers with something else.
    pub fn apply(&self, prompt: &str, file: &Enhancement) -> Result<Enhanced> {
        let threshold = file.words_threshold;
        let as_it_is = |notice: Option<String>| Enhanced {
            prompt: prompt.to_owned(),
            notice,
        };
        let Some(url) = &self.enhance_url else {
            let notice = file.applies_to(prompt).then(|| {
                format!(
                    "the official program would rewrite a prompt of fewer than {threshold} words; \
                     it is taken as it is (--enhance-url names a server that rewrites it)"
                )
            });
            return Ok(as_it_is(notice));
        };
        if threshold > 0 && !file.applies_to(prompt) {
            let notice = format!("the prompt has {threshold} words or more and is not rewritten");
            return Ok(as_it_is(Some(notice)));
        }
        let model = self.enhance_model.as_ref().or(file.language_model.as_ref());
        let model = model.map_or("default", String::as_str);
        // The flags are read before anything asynchronous begins, on a thread that may wait.
        let rewritten = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(rewrite(url, model, prompt))
        })?;
        Ok(Enhanced {
            notice: Some(format!("the prompt was rewritten: {rewritten}")),
            prompt: rewritten,
        })
    }
}

/// Asks the server at `url`.
async fn rewrite(url: &str, model: &str, prompt: &str) -> Result<String> {
    // Both Ring and others may be there; ours is the one that the whole program uses.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let endpoint = format!("{}/chat/completions", url.trim_end_matches('/'));
    let body = json!({
        "model": model,
        "messages": [
            { "role": "system", "content": INSTRUCTION },
            { "role": "user", "content": prompt },
        ],
        // The same prompt should become the same film.
        "temperature": 0,
        "seed": 0,
    });
    let mut request = client
        .post(&endpoint)
        .header("content-type", "application/json")
        .body(body.to_string());
    if let Ok(key) = std::env::var(KEY_VARIABLE) {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let asked = || format!("cannot have the prompt rewritten by {endpoint}");
    let mut response = request.send().await.with_context(asked)?;
    let status = response.status();
    let mut answer = Vec::new();
    while let Some(piece) = response.chunk().await.with_context(asked)? {
        answer.extend_from_slice(&piece);
        if answer.len() > ANSWER_BYTES_MAX {
            bail!(
                "{endpoint} answers with more than {ANSWER_BYTES_MAX} bytes; is it a chat model?"
            );
        }
    }
    if !status.is_success() {
        let text: String = String::from_utf8_lossy(&answer).chars().take(200).collect();
        bail!("{endpoint} refuses to rewrite the prompt: {status} {text}");
    }
    let answer: Value = serde_json::from_slice(&answer)
        .with_context(|| format!("{endpoint} does not answer in JSON; is it OpenAI's API?"))?;
    let content = answer["choices"][0]["message"]["content"].as_str();
    let content = content
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if content.is_empty() {
        bail!("{endpoint} answers without a prompt; is it a chat model?");
    }
    Ok(content)
}
