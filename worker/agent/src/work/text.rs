//! Encodes a job's prompts, once for all its windows.

use super::{Desk, sampling};
use crate::error::TaskError;
use longtake_common::task::{TaskOutput, Work};
use longtake_ltx::{Model, Prompt};
use longtake_tensor::Backend;

/// Output `text`.
pub fn run<B: Backend>(
    model: &Model<B>,
    work: &Work,
    desk: &mut Desk<'_>,
) -> Result<TaskOutput, TaskError> {
    let Work::Text {
        prompt,
        negative,
        text_tokens,
        reference,
        ..
    } = work
    else {
        return Err(TaskError::Fatal("this is no text to encode".to_owned()));
    };
    desk.check()?;
    let tokens = *text_tokens as usize;
    let class = sampling::class(model.config().pipeline, *reference);
    let encode = |text: &str| {
        model
            .encode_prompt(text, tokens, class)
            .map_err(TaskError::retryable)
    };
    let (prompt, negative) = desk.clock.time("text", || {
        let prompt = encode(prompt)?;
        let negative = negative.as_deref().map(encode).transpose()?;
        Ok::<_, TaskError>((prompt, negative))
    })?;
    let mut output = TaskOutput::default();
    output.notices.extend(cut_notice("prompt", &prompt));
    let mut parts = vec![("prompt", &prompt)];
    if let Some(negative) = &negative {
        output
            .notices
            .extend(cut_notice("negative prompt", negative));
        parts.push(("negative", negative));
    }
    let text = desk.artifacts.put(Prompt::to_safetensors(&parts))?;
    output.artifacts.insert("text".to_owned(), text);
    Ok(output)
}

fn cut_notice(what: &str, prompt: &Prompt) -> Option<String> {
    prompt.cut_from.map(|length| {
        format!(
            "the {what} is {length} tokens long and was cut to {}; --text-tokens raises the limit",
            prompt.tokens
        )
    })
}
