//! Profile + call + instant → what the answer says: the one place where the rules of a call are decided.
//!
//! Pure: same profile, same call, same instant, same selection. Nothing of the profile is copied; what `explain` tells
//! is decided by the same functions.

#[cfg(test)]
mod tests;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use smallvec::SmallVec;
use uuid::Uuid;

pub use crate::condition::Call;
use crate::condition::Condition;
use crate::profile::{CompiledBinding, CompiledPrompt, Opens, Profile, Refusal};
use crate::row::Scope;
use crate::stack::BETWEEN_CONTENTS;

/// More chosen prompts than these take memory of their own.
const USUAL_PROMPTS: usize = 48;

/// What the answer to one call says, borrowed from the profile and the call.
#[derive(Debug)]
pub struct Selection<'a> {
    /// What it was selected from.
    pub profile: &'a Profile,
    /// The instant it was selected for.
    pub at: Timestamp,
    /// The call's, `""` where it has none.
    pub account_ref: &'a str,
    /// The call's, `""` where it has none.
    pub event_type: &'a str,
    /// Whether the tenant is open, at the number's own timezone.
    pub hours: Hours,
    /// The prompts that apply and fit, in the order of the stack.
    pub prompts: SmallVec<[Chosen<'a>; USUAL_PROMPTS]>,
    /// How many prompts apply and no longer fit into `limits.stack_bytes`: those that stand last.
    pub left_out: usize,
    /// BCP 47 tag.
    pub language: Effective<'a, &'a str>,
    /// `""` where unset.
    pub voice: Effective<'a, &'a str>,
    /// IANA name.
    pub timezone: Effective<'a, &'a str>,
    /// `timezone`, looked up: where `local_time` is shown.
    pub zone: &'a TimeZone,
    /// `""` where unset.
    pub model: Effective<'a, &'a str>,
    /// `""` where unset.
    pub transcription_provider: Effective<'a, &'a str>,
    /// Whether to record.
    pub recording_enabled: Effective<'a, bool>,
}

/// A prompt that stands in the stack.
#[derive(Debug, Clone, Copy)]
pub struct Chosen<'a> {
    /// Where it stands among the tenant's prompts, from 0.
    pub place: u32,
    /// The prompt. It has a version.
    pub prompt: &'a CompiledPrompt,
    /// The most special of its matching bindings, whose effects count; `None` where it has no bindings.
    pub acting: Option<&'a CompiledBinding>,
}

/// A value and where it came from.
#[derive(Debug, Clone, Copy)]
pub struct Effective<'a, T> {
    /// What the answer says.
    pub value: T,
    /// Why.
    pub from: Origin<'a>,
}

impl<T> Effective<'_, T> {
    /// Whether no binding decided it.
    #[must_use]
    pub fn is_default(&self) -> bool {
        !matches!(self.from, Origin::Binding(..))
    }
}

/// Where a value came from.
#[derive(Debug, Clone, Copy)]
pub enum Origin<'a> {
    /// The number's row.
    Number,
    /// The tenant's settings, or that there are none.
    Settings,
    /// An effect of a binding.
    Binding(&'a CompiledPrompt, &'a CompiledBinding),
}

/// Whether the tenant is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hours {
    /// Open at this instant.
    Open,
    /// Closed at this instant.
    Closed,
    /// None are configured.
    NotConfigured,
}

impl Hours {
    /// `open`, `closed` or `""`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::NotConfigured => "",
        }
    }
}

/// What the rules ask of one call, worked out once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) call: &'a Call,
    /// The called number's row.
    pub(crate) number: Uuid,
    /// At the number's own timezone.
    pub(crate) hours: Hours,
}

/// The first thing for which a binding does not match.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Miss<'a> {
    AccountRef(&'a str),
    EventType(&'a str),
    PhoneNumber,
    Condition(&'a Condition),
}

/// Whether a prompt applies, and why not.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict<'a> {
    /// With the binding that acts.
    Applies(Option<&'a CompiledBinding>),
    Inactive,
    NoVersion,
    /// It has bindings, or needs one, and none matches.
    NoMatch,
    /// Some match, but none of them names the column of its scope.
    NotNamed,
}

/// What the answer to this call says.
///
/// `stack_bytes` bounds the joined contents: a prompt that no longer fits is left out with all that stand after it, and
/// has no effects either.
///
/// # Errors
/// [`Refusal::InactiveNumber`] and [`Refusal::TenantSuspended`], in this order; before them [`Refusal::NoGoodRow`] where
/// the number's row names another tenant.
pub fn select<'a>(
    profile: &'a Profile,
    call: &'a Call,
    at: Timestamp,
    stack_bytes: usize,
) -> Result<Selection<'a>, Refusal> {
    match refusal(profile) {
        Some(refusal) => Err(refusal),
        None => Ok(choose(profile, call, at, stack_bytes)),
    }
}

/// Why calls to this number get no answer, whatever they are.
pub(crate) fn refusal(profile: &Profile) -> Option<Refusal> {
    if profile.number.row.tenant_id != profile.tenant.tenant.id {
        // Never one tenant's prompts and credentials for another's number.
        Some(Refusal::NoGoodRow)
    } else if !profile.number.row.active {
        Some(Refusal::InactiveNumber)
    } else if profile.suspended_ahead || !profile.tenant.tenant.is_active() {
        Some(Refusal::TenantSuspended)
    } else {
        None
    }
}

/// The selection of a number that answers.
pub(crate) fn choose<'a>(
    profile: &'a Profile,
    call: &'a Call,
    at: Timestamp,
    stack_bytes: usize,
) -> Selection<'a> {
    let facts = Facts::new(profile, call, at);
    let number = &profile.number.row;
    let tenant = &*profile.tenant;
    let of_number = |value| Effective {
        value,
        from: Origin::Number,
    };
    let of_settings = |value| Effective {
        value,
        from: Origin::Settings,
    };
    let mut selection = Selection {
        profile,
        at,
        account_ref: call.account_ref.as_deref().unwrap_or_default(),
        event_type: call.event_type.as_deref().unwrap_or_default(),
        hours: facts.hours,
        prompts: SmallVec::new(),
        left_out: 0,
        language: of_number(number.default_language.as_str()),
        voice: of_number(number.default_voice.as_deref().unwrap_or_default()),
        timezone: of_number(number.timezone.as_str()),
        zone: &profile.number.zone,
        model: of_settings(tenant.model.as_str()),
        transcription_provider: of_settings(tenant.transcription_provider.as_str()),
        recording_enabled: Effective {
            value: tenant.recording_enabled,
            from: Origin::Settings,
        },
    };
    let mut bytes = 0_usize;
    for ((place, prompt), gate) in (0..).zip(&tenant.prompts).zip(&tenant.gates) {
        let acting = match gate.opens {
            Opens::Never => continue,
            Opens::Always => None,
            Opens::ToBindings => match facts.judge(prompt) {
                Verdict::Applies(acting) => acting,
                _ => continue,
            },
        };
        let between = if selection.prompts.is_empty() {
            0
        } else {
            BETWEEN_CONTENTS.len()
        };
        bytes = bytes
            .saturating_add(between)
            .saturating_add(gate.content_bytes);
        if bytes > stack_bytes {
            // Nothing fits after what does not: `bytes` never shrinks.
            selection.left_out = selection.left_out.saturating_add(1);
            continue;
        }
        selection.prompts.push(Chosen {
            place,
            prompt,
            acting,
        });
        if let Some(binding) = acting {
            selection.take_effects(prompt, binding);
        }
    }
    selection
}

impl<'a> Selection<'a> {
    /// The effects of a binding, over those of the prompts before it.
    fn take_effects(&mut self, prompt: &'a CompiledPrompt, binding: &'a CompiledBinding) {
        let effects = &binding.rules.effects;
        let from = Origin::Binding(prompt, binding);
        let texts = [
            (&mut self.language, &effects.language),
            (&mut self.voice, &effects.voice),
            (&mut self.model, &effects.model),
            (
                &mut self.transcription_provider,
                &effects.transcription_provider,
            ),
        ];
        for (field, effect) in texts {
            if let Some(value) = effect {
                *field = Effective { value, from };
            }
        }
        if let (Some(value), Some(zone)) = (&effects.timezone, &binding.zone) {
            self.timezone = Effective { value, from };
            self.zone = zone;
        }
        if let Some(value) = effects.recording_enabled {
            self.recording_enabled = Effective { value, from };
        }
    }
}

impl<'a> Facts<'a> {
    pub(crate) fn new(profile: &Profile, call: &'a Call, at: Timestamp) -> Self {
        let hours = match &profile.tenant.hours {
            None => Hours::NotConfigured,
            Some(hours) if hours.is_open(at, &profile.number.zone) => Hours::Open,
            Some(_) => Hours::Closed,
        };
        Self {
            call,
            number: profile.number.row.id,
            hours,
        }
    }

    /// What `outside_business_hours` is unless the caller says it.
    pub(crate) fn outside_business_hours(&self) -> bool {
        self.hours == Hours::Closed
    }

    /// Whether a prompt applies to the call.
    pub(crate) fn judge<'p>(&self, prompt: &'p CompiledPrompt) -> Verdict<'p> {
        if !prompt.active {
            return Verdict::Inactive;
        }
        if prompt.version.is_none() {
            return Verdict::NoVersion;
        }
        let mut matching = prompt
            .bindings
            .iter()
            .filter(|binding| self.miss(binding).is_none());
        // Bindings stand the most special first, so the first that matches is the one that acts.
        let acting = matching.next();
        let applies = match acting {
            None if prompt.has_bindings() || prompt.scope != Scope::Global => {
                return Verdict::NoMatch;
            }
            None => true,
            Some(first) => {
                names_scope(first, prompt.scope)
                    || matching.any(|binding| names_scope(binding, prompt.scope))
            }
        };
        if applies {
            Verdict::Applies(acting)
        } else {
            Verdict::NotNamed
        }
    }

    /// The first thing for which a binding does not match the call; `None` where it matches.
    pub(crate) fn miss<'p>(&self, binding: &'p CompiledBinding) -> Option<Miss<'p>> {
        let call = self.call;
        if let Some(wanted) = &binding.account_ref
            && call.account_ref.as_ref() != Some(wanted)
        {
            return Some(Miss::AccountRef(wanted));
        }
        if let Some(wanted) = &binding.event_type
            && !call
                .event_type
                .as_ref()
                .is_some_and(|given| given.eq_ignore_ascii_case(wanted))
        {
            return Some(Miss::EventType(wanted));
        }
        if binding
            .phone_number_id
            .is_some_and(|wanted| wanted != self.number)
        {
            return Some(Miss::PhoneNumber);
        }
        let outside = self.outside_business_hours();
        binding
            .rules
            .first_failing(call, outside)
            .map(Miss::Condition)
    }
}

/// Whether a binding names the column of a scope; every binding names that of `global`, which has none.
pub(crate) fn names_scope(binding: &CompiledBinding, scope: Scope) -> bool {
    match scope {
        Scope::Global => true,
        Scope::EventType => binding.event_type.is_some(),
        Scope::Account => binding.account_ref.is_some(),
        Scope::PhoneNumber => binding.phone_number_id.is_some(),
    }
}
