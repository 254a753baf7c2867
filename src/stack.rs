//! Prompts as they stand in answers, written once and not for each call.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use uuid::Uuid;

use crate::row::{Prompt, Version};

/// Bytes between two contents in `prompt.system`: one blank line.
pub const BETWEEN_CONTENTS: &str = "\n\n";

/// [`BETWEEN_CONTENTS`] as it stands within a JSON string.
const BETWEEN_ESCAPED: &str = r"\n\n";

/// Bytes of an id with what separates it from the next.
pub const ID_BYTES: usize = 37;

/// Most stacks that are kept of a tenant.
const MOST_KEPT: usize = 16;

/// A prompt as it stands in the full view.
pub struct Layer {
    json: Box<str>,
    /// Where its text stands, escaped, without the quotes.
    content: Range<usize>,
    content_bytes: usize,
}

impl Layer {
    /// The prompt's member of `prompt.layers` (design section 4).
    ///
    /// # Errors
    /// Never on what a row can hold; serialising into memory is all that is done.
    pub fn new(prompt: &Prompt, version: &Version) -> Result<Self, serde_json::Error> {
        #[derive(serde::Serialize)]
        struct View<'a> {
            id: Uuid,
            version: i32,
            name: &'a str,
            scope: &'a str,
            priority: i32,
            content: &'a str,
        }
        let content = &version.content;
        let json = serde_json::to_string(&View {
            id: prompt.id,
            version: version.version,
            name: &prompt.name,
            scope: prompt.scope.as_str(),
            priority: prompt.priority,
            content,
        })?;
        let escaped = serde_json::to_string(content)?.len().saturating_sub(2);
        // The text is the last member: `…"}` follows it.
        let end = json.len().saturating_sub(2);
        Ok(Self {
            content: end.saturating_sub(escaped)..end,
            json: json.into_boxed_str(),
            content_bytes: content.len(),
        })
    }

    /// The object.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The prompt's text as it stands within a JSON string.
    fn escaped_content(&self) -> &str {
        self.json.get(self.content.clone()).unwrap_or_default()
    }

    /// Length of the prompt's text.
    #[must_use]
    pub fn content_bytes(&self) -> usize {
        self.content_bytes
    }
}

/// A prompt of a stack: its id, and itself.
pub type Named<'a> = (Uuid, &'a Layer);

/// Some prompts of a tenant, in order, as they stand in the full view.
pub struct Stack {
    places: Box<[u32]>,
    ids: Box<str>,
    /// `"ids":"…","system":"…","layers":[…]}}`
    json: Bytes,
    /// `"ids":"…"}}`
    short: Bytes,
    hash: [u8; 32],
}

impl Stack {
    fn new<'a>(places: Box<[u32]>, prompt: impl Fn(u32) -> Option<Named<'a>>) -> Self {
        let prompts = places.iter().filter_map(|place| prompt(*place));
        let contents: usize = prompts.clone().map(|(_, layer)| layer.json.len()).sum();
        let mut ids = String::with_capacity(places.len().saturating_mul(ID_BYTES));
        let mut system = String::with_capacity(contents);
        let mut layers = String::with_capacity(contents);
        for (index, (id, layer)) in prompts.enumerate() {
            if index > 0 {
                ids.push(',');
                system.push_str(BETWEEN_ESCAPED);
                layers.push(',');
            }
            ids.push_str(id.hyphenated().encode_lower(&mut Uuid::encode_buffer()));
            system.push_str(layer.escaped_content());
            layers.push_str(&layer.json);
        }
        let json = format!(r#""ids":"{ids}","system":"{system}","layers":[{layers}]}}}}"#);
        Self {
            short: format!(r#""ids":"{ids}"}}}}"#).into_bytes().into(),
            hash: *blake3::hash(ids.as_bytes()).as_bytes(),
            places,
            ids: ids.into_boxed_str(),
            json: json.into_bytes().into(),
        }
    }

    /// The prompts' ids, joined by commas.
    #[must_use]
    pub fn ids(&self) -> &str {
        &self.ids
    }

    /// Of the ids.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// What stands in the object `prompt`, with the end of that object and of the answer. Shared, not copied.
    #[must_use]
    pub fn to_the_end(&self) -> Bytes {
        self.json.clone()
    }

    /// What stands in the object `prompt` of the short view, with the end of that object and of the answer.
    #[must_use]
    pub fn short(&self) -> Bytes {
        self.short.clone()
    }

    /// What stands in the object `prompt`, with the end of that object: more of the answer follows.
    #[must_use]
    pub fn to_its_end(&self) -> Bytes {
        self.json.slice(..self.json.len().saturating_sub(1))
    }

    /// Estimate of the memory this takes.
    fn bytes(&self) -> usize {
        size_of::<Self>()
            .saturating_add(self.json.len())
            .saturating_add(self.ids.len().saturating_mul(2))
            .saturating_add(size_of_val(&*self.places))
    }
}

/// The stacks that a tenant's calls were answered with so far: as many as there is room for, the first ones asked for.
pub struct Stacks {
    kept: ArcSwap<Vec<Arc<Stack>>>,
    most_bytes: usize,
}

impl Stacks {
    /// None yet, and never more than so many bytes.
    #[must_use]
    pub fn new(most_bytes: usize) -> Self {
        Self {
            kept: ArcSwap::default(),
            most_bytes,
        }
    }

    /// The stack of the prompts at these places among the tenant's.
    #[must_use]
    pub fn of<'a>(
        &self,
        places: impl ExactSizeIterator<Item = u32> + Clone,
        prompt: impl Fn(u32) -> Option<Named<'a>>,
    ) -> Arc<Stack> {
        let kept = self.kept.load();
        let found = kept.iter().find(|stack| {
            stack.places.len() == places.len() && stack.places.iter().copied().eq(places.clone())
        });
        if let Some(stack) = found {
            return stack.clone();
        }
        let stack = Arc::new(Stack::new(places.collect(), prompt));
        let taken: usize = kept.iter().map(|stack| stack.bytes()).sum();
        if kept.len() < MOST_KEPT && taken.saturating_add(stack.bytes()) <= self.most_bytes {
            let mut more = Vec::clone(&kept);
            more.push(stack.clone());
            // Where another call was faster, the next one tries again.
            self.kept.compare_and_swap(&kept, Arc::new(more));
        }
        stack
    }
}

impl fmt::Debug for Stacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stacks").finish_non_exhaustive()
    }
}
