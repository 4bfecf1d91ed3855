//! What a pipeline file says about rewriting short prompts.

use super::error::PipelineError;
use super::section::Section;

/// The official program has a language model rewrite prompts of fewer words than a threshold. No
/// such model runs here: the prompt is taken as it is, or rewritten by a server that the user names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enhancement {
    /// Prompts of fewer words are rewritten; 0: none are.
    pub words_threshold: u32,
    /// The language model that the file names.
    pub language_model: Option<String>,
    /// The model that describes a given image first.
    pub caption_model: Option<String>,
}

impl Enhancement {
    pub(super) fn read(file: &Section<'_>) -> Result<Self, PipelineError> {
        let name = "the name of a model";
        Ok(Self {
            words_threshold: file
                .count("prompt_enhancement_words_threshold", 0)?
                .unwrap_or(0),
            language_model: file.get("prompt_enhancer_llm_model_name_or_path", name)?,
            caption_model: file.get("prompt_enhancer_image_caption_model_name_or_path", name)?,
        })
    }

    /// Whether the official program would rewrite `prompt`.
    pub fn applies_to(&self, prompt: &str) -> bool {
        let words = prompt.split_whitespace().count();
        u32::try_from(words).is_ok_and(|words| words < self.words_threshold)
    }
}
