//! A selection → the bytes of an answer: full view, short view, form, one field, credentials, errors.
//!
//! Every field is always present and never null; JSON stands on one line, in one order, with UTF-8 as it is. What holds a
//! credential is wiped when it is freed, as everything is (`main.rs`).

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{IoSlice, Write};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use bytes::{Buf, Bytes};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use uuid::Uuid;

use crate::health::Staleness;
use crate::profile::{Once, Profile, RowRevision};
use crate::select::Selection;
use crate::stack::{ID_BYTES, Stack};

/// The short view, as JSON, as a form and field by field, is shorter than this many bytes.
pub const SHORT_BYTES: usize = 4096;

/// Everything but RFC 3986's unreserved characters.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What a view without prompts usually takes; the allocator of glibc has up to 1032 bytes at hand for each thread.
const VIEW_BYTES: usize = 1000;

/// Declares the fields once: name in the flat forms, place in the JSON, meaning.
macro_rules! fields {
    ($($(#[doc = $doc:literal])* $field:ident = $name:literal, $parent:literal, $key:literal;)*) => {
        /// A field of the short view. The order is that of the answer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Field { $($(#[doc = $doc])* $field,)* }

        impl Field {
            /// Every field in the order of the answer.
            pub const ALL: &'static [Self] = &[$(Self::$field),*];

            /// Its flat name: in a form, and in `/v1/lookup/{field}`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$field => $name),* }
            }

            /// What it means, for the reference.
            #[must_use]
            pub fn doc(self) -> &'static str {
                match self { $(Self::$field => concat!($($doc),*).trim_ascii(),)* }
            }

            /// The object it stands in, `""` for the answer itself, and its key there.
            fn place(self) -> (&'static str, &'static str) {
                match self { $(Self::$field => ($parent, $key)),* }
            }
        }
    };
}

fields! {
    /// `ok`, or why there is no answer.
    Status = "status", "", "status";
    /// The called number, E.164.
    Number = "number", "", "number";
    /// Label of the number.
    Label = "label", "", "label";
    /// Id of the tenant.
    TenantId = "tenant_id", "tenant", "id";
    /// Short name of the tenant.
    TenantSlug = "tenant_slug", "tenant", "slug";
    /// Name of the tenant.
    TenantName = "tenant_name", "tenant", "name";
    /// The call's `account_ref`, as it was sent.
    AccountRef = "account_ref", "", "account_ref";
    /// The call's `event_type`, as it was sent.
    EventType = "event_type", "", "event_type";
    /// Language tag, BCP 47.
    Language = "language", "", "language";
    /// Voice of the text-to-speech provider.
    Voice = "voice", "", "voice";
    /// IANA zone.
    Timezone = "timezone", "", "timezone";
    /// The instant of the answer in that zone, RFC 3339 to the second.
    LocalTime = "local_time", "", "local_time";
    /// `open`, `closed`, or empty where no hours are configured.
    BusinessHours = "business_hours", "", "business_hours";
    /// Language model.
    Model = "model", "", "model";
    /// Speech-to-text provider.
    TranscriptionProvider = "transcription_provider", "", "transcription_provider";
    /// Whether to record.
    RecordingEnabled = "recording_enabled", "", "recording_enabled";
    /// Hash of the rows the answer was made from.
    Revision = "revision", "", "revision";
    /// Whether the node has not been level with Postgres for longer than `feed.stale_after`.
    Stale = "stale", "", "stale";
    /// Milliseconds since the node last proved that it was level with Postgres.
    StalenessMs = "staleness_ms", "", "staleness_ms";
    /// Ids of the prompts in the order of the stack, joined by commas.
    PromptIds = "prompt_ids", "prompt", "ids";
}

impl Field {
    /// The field with this flat name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|field| field.name() == name)
    }

    /// Those that stand before the object `prompt`.
    const OUTSIDE: &'static [Self] = match Self::ALL {
        [outside @ .., Self::PromptIds] => outside,
        _ => Self::ALL,
    };

    /// The order of a form. What people and callers write freely stands last: Asterisk's HASH() takes a `(`, a `[` or a `"` in a
    /// value for the beginning of something and all that follows for its content, however it was encoded.
    const IN_A_FORM: &'static [Self] = &[
        Self::Status,
        Self::Number,
        Self::TenantId,
        Self::Language,
        Self::Timezone,
        Self::LocalTime,
        Self::BusinessHours,
        Self::RecordingEnabled,
        Self::Revision,
        Self::Stale,
        Self::StalenessMs,
        Self::PromptIds,
        Self::TenantSlug,
        Self::Voice,
        Self::Model,
        Self::TranscriptionProvider,
        Self::Label,
        Self::TenantName,
        Self::AccountRef,
        Self::EventType,
    ];

    /// Whether equal answers may differ in it: it does not enter the ETag.
    fn is_volatile(self) -> bool {
        matches!(self, Self::LocalTime | Self::Stale | Self::StalenessMs)
    }
}

/// A value of a field.
#[derive(Clone, Copy)]
enum Value<'a> {
    Text(&'a str),
    Flag(bool),
    Count(u64),
    Id(Uuid),
    /// Ids joined by commas.
    Ids(&'a str),
    Time(LocalTime),
    Revision(RowRevision),
}

/// The bytes of an answer: what was written for it, around the prompts, which all calls share.
#[derive(Default)]
pub struct Written {
    before: Vec<u8>,
    prompts: Bytes,
    after: Vec<u8>,
    /// Bytes of `before` and of `after` that are sent.
    sent: (usize, usize),
}

impl Written {
    /// The pieces that are still to be sent.
    #[must_use]
    pub fn pieces(&self) -> [&[u8]; 3] {
        [
            self.before.get(self.sent.0..).unwrap_or_default(),
            &self.prompts,
            self.after.get(self.sent.1..).unwrap_or_default(),
        ]
    }

    /// All in one piece.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        self.pieces().concat()
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remaining() == 0
    }
}

impl From<Vec<u8>> for Written {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            before: bytes,
            ..Self::default()
        }
    }
}

impl From<Bytes> for Written {
    fn from(bytes: Bytes) -> Self {
        Self {
            prompts: bytes,
            ..Self::default()
        }
    }
}

impl From<String> for Written {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<&[u8]> for Written {
    fn from(bytes: &[u8]) -> Self {
        bytes.to_vec().into()
    }
}

impl Buf for Written {
    fn remaining(&self) -> usize {
        self.pieces()
            .iter()
            .fold(0, |all, piece| all.saturating_add(piece.len()))
    }

    fn chunk(&self) -> &[u8] {
        let pieces = self.pieces();
        let first = pieces.into_iter().find(|piece| !piece.is_empty());
        first.unwrap_or_default()
    }

    fn chunks_vectored<'a>(&'a self, into: &mut [IoSlice<'a>]) -> usize {
        let pieces = self.pieces().into_iter().filter(|piece| !piece.is_empty());
        let mut filled: usize = 0;
        for (slice, piece) in into.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            filled = filled.saturating_add(1);
        }
        filled
    }

    fn advance(&mut self, count: usize) {
        let [before, prompts, _] = self.pieces().map(<[u8]>::len);
        let of_before = count.min(before);
        let of_prompts = count.saturating_sub(of_before).min(prompts);
        let of_after = count.saturating_sub(of_before).saturating_sub(of_prompts);
        self.sent.0 = self.sent.0.saturating_add(of_before);
        self.prompts.advance(of_prompts);
        self.sent.1 = self.sent.1.saturating_add(of_after);
    }
}

/// Says nothing of what it holds.
impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written")
            .field("bytes", &self.remaining())
            .finish_non_exhaustive()
    }
}

/// A full view and what `If-None-Match` compares.
#[derive(Debug)]
pub struct Resolved {
    /// The answer; it may hold credentials.
    pub body: Written,
    /// Strong, with its quotes: equal as long as nothing but the time changes.
    pub etag: String,
}

/// One call's answer, ready to be written in any of its forms.
pub struct Answer<'s, 'p> {
    selection: &'s Selection<'p>,
    stack: Arc<Stack>,
    staleness: Staleness,
    revision: RowRevision,
}

impl<'s, 'p> Answer<'s, 'p> {
    /// The answer for a selection, as old as this.
    #[must_use]
    pub fn new(selection: &'s Selection<'p>, staleness: Staleness) -> Self {
        let prompts = &selection.profile.tenant.prompts;
        let places = selection.prompts.iter().map(|chosen| chosen.place);
        Self {
            selection,
            stack: selection.profile.tenant.stacks.of(places, |place| {
                let prompt = prompts.get(usize::try_from(place).ok()?)?;
                Some((prompt.id, &prompt.version.as_ref()?.layer))
            }),
            staleness,
            revision: selection.profile.revision(),
        }
    }

    /// The full view. Credentials of the providers for which `credentials` says yes; without it, none of their
    /// fields. `credentials_withheld` lists those that do not open as `provider/name`.
    #[must_use]
    pub fn resolve(&self, credentials: Option<&dyn Fn(&str) -> bool>) -> Resolved {
        let Some(allowed) = credentials else {
            let (body, volatile) = self.before_the_prompts(self.stack.to_the_end());
            let etag = self.etag(&body, &volatile);
            return Resolved { body, etag };
        };
        let (mut body, volatile) = self.before_the_prompts(self.stack.to_its_end());
        let mut after = Json::with_capacity(256); // begins with a comma: it is no object's first
        write_credentials(&mut after, self.selection.profile, allowed);
        after.close();
        body.after = after.out;
        let etag = self.etag(&body, &volatile);
        Resolved { body, etag }
    }

    /// Every field that stands before these prompts, and where those are that do not enter the ETag.
    fn before_the_prompts(&self, prompts: Bytes) -> (Written, Vec<Range<usize>>) {
        let mut json = Json::with_capacity(VIEW_BYTES);
        json.open(None);
        self.write_fields(&mut json, Field::OUTSIDE, &Whole);
        json.open(Some("prompt"));
        let written = Written {
            before: json.out,
            prompts,
            ..Written::default()
        };
        (written, json.volatile)
    }

    /// The hash of the rows, of the prompts chosen, of the fields without what is volatile, and of what follows the
    /// prompts. Their texts follow from the rows and their ids.
    fn etag(&self, body: &Written, volatile: &[Range<usize>]) -> String {
        let profile = self.selection.profile;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&profile.number.hash);
        hasher.update(&profile.tenant.hash);
        hasher.update(self.stack.hash());
        let mut from = 0;
        for volatile in volatile {
            hasher.update(body.before.get(from..volatile.start).unwrap_or_default());
            from = volatile.end;
        }
        hasher.update(body.before.get(from..).unwrap_or_default());
        hasher.update(&body.after);
        let hash = hasher.finalize().to_hex();
        format!("\"{}\"", hash.get(..32).unwrap_or_default())
    }

    /// The short view as JSON, shorter than [`SHORT_BYTES`].
    #[must_use]
    pub fn lookup(&self) -> Written {
        let whole = self.before_the_prompts(self.stack.short()).0;
        if whole.remaining() < SHORT_BYTES {
            return whole;
        }
        let write = |cuts: &Cuts| {
            let mut json = Json::with_capacity(VIEW_BYTES.saturating_add(self.stack.ids().len()));
            json.open(None);
            self.write_fields(&mut json, Field::ALL, cuts);
            json.close();
            json.close();
            json.out
        };
        self.short(write, json_bytes, 37).into()
    }

    /// The short view as `key=value&…`, shorter than [`SHORT_BYTES`].
    #[must_use]
    pub fn form(&self) -> Vec<u8> {
        let write = |cuts: &Cuts| {
            let mut form = Vec::with_capacity(VIEW_BYTES.saturating_add(self.stack.ids().len()));
            let mut text = Vec::new();
            for field in Field::IN_A_FORM {
                text.clear();
                write_plain(&mut text, cuts.value(self, *field));
                push_pair(&mut form, field.name(), &text);
            }
            form
        };
        self.short(write, form_bytes, 39)
    }

    /// One field of the short view as plain text.
    #[must_use]
    pub fn field(&self, field: Field) -> Vec<u8> {
        let write = |cuts: &Cuts| {
            let mut text = Vec::new();
            write_plain(&mut text, cuts.value(self, field));
            text
        };
        self.short(write, char::len_utf8, 37)
    }

    /// The value of a field, uncut.
    fn value(&self, field: Field) -> Value<'_> {
        let Self {
            selection,
            stack,
            staleness,
            revision,
        } = self;
        let number = &selection.profile.number.row;
        let tenant = &selection.profile.tenant.tenant;
        match field {
            Field::Status => Value::Text("ok"),
            Field::Number => Value::Text(number.e164.as_str()),
            Field::Label => Value::Text(number.label.as_deref().unwrap_or_default()),
            Field::TenantId => Value::Id(tenant.id),
            Field::TenantSlug => Value::Text(&tenant.slug),
            Field::TenantName => Value::Text(&tenant.name),
            Field::AccountRef => Value::Text(selection.account_ref),
            Field::EventType => Value::Text(selection.event_type),
            Field::Language => Value::Text(selection.language.value),
            Field::Voice => Value::Text(selection.voice.value),
            Field::Timezone => Value::Text(selection.timezone.value),
            Field::LocalTime => Value::Time(LocalTime::new(selection.at, selection.zone)),
            Field::BusinessHours => Value::Text(selection.hours.as_str()),
            Field::Model => Value::Text(selection.model.value),
            Field::TranscriptionProvider => Value::Text(selection.transcription_provider.value),
            Field::RecordingEnabled => Value::Flag(selection.recording_enabled.value),
            Field::Revision => Value::Revision(*revision),
            Field::Stale => Value::Flag(staleness.stale),
            Field::StalenessMs => Value::Count(staleness.ms),
            Field::PromptIds => Value::Ids(stack.ids()),
        }
    }

    /// The fields in their order, leaving the object of the last one open.
    fn write_fields(&self, json: &mut Json, fields: &[Field], values: &impl Values) {
        let all = || fields.iter().zip(&*OPENINGS);
        if !values.are_whole() {
            all().for_each(|(field, opening)| self.write_field(json, *field, opening, values));
            return;
        }
        let mut known: Option<&Once> = None;
        for (field, opening) in all() {
            let once = self.once(*field);
            match (once, known) {
                (Some(once), Some(known)) if std::ptr::eq(once, known) => {}
                (Some(once), _) => json.out.extend_from_slice(once.written(|| {
                    let mut part = Json::with_capacity(128);
                    let same =
                        |field: &Field| self.once(*field).is_some_and(|of| std::ptr::eq(of, once));
                    all()
                        .filter(|(field, _)| same(field))
                        .for_each(|(field, opening)| {
                            self.write_field(&mut part, *field, opening, values)
                        });
                    part.out
                })),
                (None, _) => self.write_field(json, *field, opening, values),
            }
            known = once;
        }
    }

    fn write_field(&self, json: &mut Json, field: Field, opening: &[u8], values: &impl Values) {
        json.out.extend_from_slice(opening);
        let from = json.out.len();
        json.value(values.value(self, field));
        if field.is_volatile() {
            json.volatile.push(from..json.out.len());
        }
    }

    /// What a field is written with once for all calls, where no binding decides one of those.
    fn once(&self, field: Field) -> Option<&Once> {
        let selection = self.selection;
        let Profile { number, tenant, .. } = selection.profile;
        match field {
            Field::Status | Field::Number | Field::Label => Some(&number.called),
            Field::TenantId | Field::TenantSlug | Field::TenantName => Some(&tenant.owner),
            Field::Language | Field::Voice | Field::Timezone => {
                let of_number = selection.language.is_default()
                    && selection.voice.is_default()
                    && selection.timezone.is_default();
                of_number.then_some(&number.speech)
            }
            Field::Model | Field::TranscriptionProvider | Field::RecordingEnabled => {
                let of_settings = selection.model.is_default()
                    && selection.transcription_provider.is_default()
                    && selection.recording_enabled.is_default();
                of_settings.then_some(&tenant.models)
            }
            _ => None,
        }
    }

    /// Writes the short view, and once more with less in it where it is too long: prompt ids first, whole ids from the
    /// end, then the tenant's name, the label, and what no real answer ever comes to, the call's own words and the slug.
    fn short(
        &self,
        write: impl Fn(&Cuts) -> Vec<u8>,
        bytes: impl Fn(char) -> usize,
        id_bytes: usize,
    ) -> Vec<u8> {
        let mut cuts = Cuts {
            ids: self.selection.prompts.len(),
            texts: Vec::new(),
        };
        let mut written = write(&cuts);
        let Some(mut over) = written.len().checked_sub(SHORT_BYTES.saturating_sub(1)) else {
            return written;
        };
        if over == 0 {
            return written;
        }
        let drop = over.div_ceil(id_bytes).min(cuts.ids);
        cuts.ids = cuts.ids.saturating_sub(drop);
        // The last id has no comma: counting one for it may promise a byte or three too much.
        over = over.saturating_sub(drop.saturating_mul(id_bytes));
        if cuts.ids == 0 {
            over = over.saturating_add(3);
        }
        for field in CUT {
            if over == 0 {
                break;
            }
            let Value::Text(text) = self.value(field) else {
                continue;
            };
            let mut keep = text;
            while over > 0
                && let Some(last) = keep.chars().next_back()
            {
                over = over.saturating_sub(bytes(last));
                keep = keep.strip_suffix(last).unwrap_or_default();
            }
            cuts.texts.push((field, keep.len()));
        }
        written.clear();
        write(&cuts)
    }
}

/// What is cut from a short view that is too long, after the prompt ids.
const CUT: [Field; 5] = [
    Field::TenantName,
    Field::Label,
    Field::AccountRef,
    Field::EventType,
    Field::TenantSlug,
];

/// What stands before the value of each field, in the order of all fields: its key, and what ends and begins the
/// objects around it.
static OPENINGS: LazyLock<Vec<Box<[u8]>>> = LazyLock::new(|| {
    let mut inside = "";
    let opening = |field: &Field| {
        let (parent, key) = field.place();
        let mut json = Json::with_capacity(64);
        if parent != inside && !inside.is_empty() {
            json.close();
        }
        if parent != inside && !parent.is_empty() {
            json.open(Some(parent));
        }
        inside = parent;
        json.key(key);
        json.out.into_boxed_slice()
    };
    let mut openings: Vec<_> = Field::ALL.iter().map(opening).collect();
    // Nothing stands before the first.
    if let Some(first) = openings.first_mut() {
        *first = first.strip_prefix(b",").unwrap_or(first).into();
    }
    openings
});

/// Where the values of the fields come from.
trait Values {
    /// Whether nothing is cut.
    fn are_whole(&self) -> bool;

    fn value<'a>(&self, answer: &'a Answer<'_, '_>, field: Field) -> Value<'a>;
}

/// Nothing is cut.
struct Whole;

impl Values for Whole {
    fn are_whole(&self) -> bool {
        true
    }

    fn value<'a>(&self, answer: &'a Answer<'_, '_>, field: Field) -> Value<'a> {
        answer.value(field)
    }
}

/// What is left of the fields that were cut.
struct Cuts {
    /// So many prompt ids.
    ids: usize,
    /// So many bytes of these texts.
    texts: Vec<(Field, usize)>,
}

impl Values for Cuts {
    fn are_whole(&self) -> bool {
        self.texts.is_empty()
    }

    fn value<'a>(&self, answer: &'a Answer<'_, '_>, field: Field) -> Value<'a> {
        match answer.value(field) {
            Value::Ids(ids) => {
                let end = self.ids.saturating_mul(ID_BYTES).saturating_sub(1);
                Value::Ids(ids.get(..end).unwrap_or(ids))
            }
            Value::Text(text) => {
                let cut = self.texts.iter().find(|(cut, _)| *cut == field);
                Value::Text(cut.and_then(|(_, keep)| text.get(..*keep)).unwrap_or(text))
            }
            other => other,
        }
    }
}

/// The credentials of a number's tenant alone: those of the providers for which `allowed` says yes.
#[must_use]
pub fn credentials(
    profile: &Profile,
    staleness: Staleness,
    allowed: &dyn Fn(&str) -> bool,
) -> Vec<u8> {
    let mut json = Json::with_capacity(256);
    json.open(None);
    json.member("status", Value::Text("ok"));
    json.member("number", Value::Text(profile.number.row.e164.as_str()));
    json.member("revision", Value::Revision(profile.revision()));
    json.member("stale", Value::Flag(staleness.stale));
    json.member("staleness_ms", Value::Count(staleness.ms));
    write_credentials(&mut json, profile, allowed);
    json.close();
    json.out
}

/// `{"status":…,"message":…}`
#[must_use]
pub fn error_json(status: &str, message: &str) -> Vec<u8> {
    let mut json = Json::with_capacity(128);
    json.open(None);
    json.member("status", Value::Text(status));
    json.member("message", Value::Text(message));
    json.close();
    json.out
}

/// `status=…&message=…`
#[must_use]
pub fn error_form(status: &str, message: &str) -> Vec<u8> {
    let mut form = Vec::with_capacity(128);
    push_pair(&mut form, "status", status.as_bytes());
    push_pair(&mut form, "message", message.as_bytes());
    form
}

/// What the credentials and those withheld take at most. No character takes more than six bytes in JSON.
fn credentials_room(profile: &Profile, allowed: &dyn Fn(&str) -> bool) -> usize {
    let names = |provider: &str, name: &str| {
        provider
            .len()
            .saturating_add(name.len())
            .saturating_mul(6)
            .saturating_add(16)
    };
    let opened = profile
        .tenant
        .credentials
        .iter()
        .filter(|one| allowed(&one.provider));
    let withheld = profile
        .tenant
        .withheld
        .iter()
        .filter(|one| allowed(&one.provider));
    opened
        .map(|one| names(&one.provider, &one.name).saturating_add(one.json.len()))
        .chain(withheld.map(|one| names(&one.provider, &one.name)))
        .fold(64, usize::saturating_add)
}

fn write_credentials(json: &mut Json, profile: &Profile, allowed: &dyn Fn(&str) -> bool) {
    json.out.reserve(credentials_room(profile, allowed));
    let opened = profile
        .tenant
        .credentials
        .iter()
        .filter(|one| allowed(&one.provider));
    let withheld = profile
        .tenant
        .withheld
        .iter()
        .filter(|one| allowed(&one.provider));
    json.open(Some("credentials"));
    let mut inside: Option<&str> = None;
    for credential in opened {
        let provider = credential.provider.as_str();
        if inside != Some(provider) {
            if inside.is_some() {
                json.close();
            }
            json.foreign_key(provider);
            json.open(None);
            inside = Some(provider);
        }
        json.foreign_key(&credential.name);
        json.out
            .extend_from_slice(credential.json.expose().as_bytes());
    }
    if inside.is_some() {
        json.close();
    }
    json.close();
    json.key("credentials_withheld");
    json.list(withheld, |json, one| {
        json.joined_text([one.provider.as_str(), &one.name], "/")
    });
}

/// JSON being written. Members separate themselves.
struct Json {
    out: Vec<u8>,
    /// What does not enter the ETag.
    volatile: Vec<Range<usize>>,
}

impl Json {
    fn with_capacity(bytes: usize) -> Self {
        Self {
            out: Vec::with_capacity(bytes),
            volatile: Vec::new(),
        }
    }

    /// Begins an object, as the member of this name if it has one.
    fn open(&mut self, name: Option<&'static str>) {
        if let Some(name) = name {
            self.key(name);
        }
        self.out.push(b'{');
    }

    fn close(&mut self) {
        self.out.push(b'}');
    }

    /// One of our own names: nothing in it needs escaping.
    fn key(&mut self, name: &'static str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A name out of a row.
    fn foreign_key(&mut self, name: &str) {
        if self.out.last() != Some(&b'{') {
            self.out.push(b',');
        }
        self.text(name);
        self.out.push(b':');
    }

    fn member(&mut self, name: &'static str, value: Value<'_>) {
        self.key(name);
        self.value(value);
    }

    fn value(&mut self, value: Value<'_>) {
        match value {
            Value::Text(text) => self.text(text),
            Value::Flag(flag) => self
                .out
                .extend_from_slice(if flag { b"true" } else { b"false" }),
            Value::Count(count) => self.integer(count),
            // No character of these needs escaping.
            Value::Id(_) | Value::Ids(_) | Value::Time(_) | Value::Revision(_) => {
                self.out.push(b'"');
                write_plain(&mut self.out, value);
                self.out.push(b'"');
            }
        }
    }

    fn text(&mut self, text: &str) {
        // Writing into memory does not fail.
        let _ = serde_json::to_writer(&mut self.out, text);
    }

    fn integer(&mut self, number: impl fmt::Display) {
        let _ = write!(self.out, "{number}");
    }

    /// One text made of pieces, never held in one piece anywhere else.
    fn joined_text<'t>(&mut self, pieces: impl IntoIterator<Item = &'t str>, between: &str) {
        self.out.push(b'"');
        for (index, piece) in pieces.into_iter().enumerate() {
            if index > 0 {
                self.unquoted(between);
            }
            self.unquoted(piece);
        }
        self.out.push(b'"');
    }

    /// A text's characters, escaped, without the quotes.
    fn unquoted(&mut self, text: &str) {
        let quote = self.out.len();
        self.text(text);
        self.out.pop();
        // Taking the opening quote out moves the text by one: cheaper than an escaper of our own.
        self.out.remove(quote);
    }

    fn list<T>(&mut self, items: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Self, T)) {
        self.out.push(b'[');
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            write(self, item);
        }
        self.out.push(b']');
    }
}

/// A value as plain text: booleans 1 and 0.
fn write_plain(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Text(text) | Value::Ids(text) => out.extend_from_slice(text.as_bytes()),
        Value::Flag(flag) => out.push(if flag { b'1' } else { b'0' }),
        Value::Count(count) => {
            let _ = write!(out, "{count}");
        }
        Value::Id(id) => {
            let mut buffer = Uuid::encode_buffer();
            out.extend_from_slice(id.hyphenated().encode_lower(&mut buffer).as_bytes());
        }
        Value::Time(time) => time.write(out),
        Value::Revision(revision) => out.extend_from_slice(&revision.hex()),
    }
}

/// `&key=value`; an empty value is a bare key.
fn push_pair(form: &mut Vec<u8>, name: &str, value: &[u8]) {
    if !form.is_empty() {
        form.push(b'&');
    }
    form.extend_from_slice(name.as_bytes());
    if !value.is_empty() {
        form.push(b'=');
        for piece in percent_encoding::percent_encode(value, RESERVED) {
            form.extend_from_slice(piece.as_bytes());
        }
    }
}

/// Bytes a character of a text takes in JSON.
fn json_bytes(c: char) -> usize {
    match c {
        '"' | '\\' => 2,
        c if c.is_ascii_control() => 6,
        c => c.len_utf8(),
    }
}

/// Bytes a character takes in a form.
fn form_bytes(c: char) -> usize {
    let mut buffer = [0; 4];
    utf8_percent_encode(c.encode_utf8(&mut buffer), RESERVED)
        .map(str::len)
        .sum()
}

/// An instant at a zone, RFC 3339 to the second. An offset that is no whole minute, as of before standard time, is
/// rounded to one, and the time with it.
#[derive(Clone, Copy)]
pub(crate) struct LocalTime {
    civil: jiff::civil::DateTime,
    offset_minutes: i32,
}

impl LocalTime {
    pub(crate) fn new(at: Timestamp, zone: &TimeZone) -> Self {
        let seconds = zone.to_offset(at).seconds();
        let offset_minutes = seconds.saturating_add(30).div_euclid(60);
        let rounded = jiff::tz::Offset::from_seconds(offset_minutes.saturating_mul(60));
        let civil = rounded.unwrap_or(jiff::tz::Offset::UTC).to_datetime(at);
        Self {
            civil,
            offset_minutes,
        }
    }
}

impl LocalTime {
    fn write(self, out: &mut Vec<u8>) {
        let Self {
            civil: time,
            offset_minutes,
        } = self;
        let year = time.year();
        // Writing into memory does not fail.
        let _ = write!(out, "{year:04}");
        let mut two = |before: u8, number: u16| {
            out.push(before);
            let digit = |number: u16| b'0'.saturating_add(u8::try_from(number % 10).unwrap_or(0));
            out.extend([digit(number / 10), digit(number)]);
        };
        let small = |number: i8| u16::from(number.unsigned_abs());
        two(b'-', small(time.month()));
        two(b'-', small(time.day()));
        two(b'T', small(time.hour()));
        two(b':', small(time.minute()));
        two(b':', small(time.second()));
        let sign = if offset_minutes < 0 { b'-' } else { b'+' };
        let minutes = u16::try_from(offset_minutes.unsigned_abs()).unwrap_or(0);
        two(sign, minutes / 60);
        two(b':', minutes % 60);
    }
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.write(&mut text);
        f.write_str(&String::from_utf8_lossy(&text))
    }
}
