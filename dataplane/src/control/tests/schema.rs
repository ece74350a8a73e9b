//! Judges JSON by the schemas of the OpenAPI document.
//!
//! The subset of JSON Schema 2020-12 that the document uses; a keyword outside it is a failure, so
//! that nothing is passed unjudged. Stricter than the standard in one point: a property that the
//! schema does not name is an error, because a reply that is richer than its document is not
//! documented.

use serde_json::{Map, Value};

/// Everything in `value` that `schema` does not allow, by its place.
pub fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    Judge { document }.judge(schema, value, "$", &mut faults);
    faults
}

struct Judge<'a> {
    document: &'a Value,
}

impl Judge<'_> {
    fn judge(&self, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
        let Some(schema) = schema.as_object() else {
            return faults.push(format!("{at}: the schema is no object: {schema}"));
        };
        for (keyword, rule) in schema {
            match keyword.as_str() {
                "$ref" => match self.resolve(rule) {
                    Some(target) => self.judge(target, value, at, faults),
                    None => faults.push(format!("{at}: {rule} leads nowhere")),
                },
                "type" => {
                    let allowed = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                    if !allowed.iter().any(|kind| is_of_type(value, kind)) {
                        faults.push(format!("{at}: {value} is not of type {rule}"));
                    }
                }
                "enum" => {
                    if !rule.as_array().is_some_and(|allowed| allowed.contains(value)) {
                        faults.push(format!("{at}: {value} is none of {rule}"));
                    }
                }
                "oneOf" => {
                    let options = rule.as_array().map_or(&[][..], Vec::as_slice);
                    let fitting = options.iter().filter(|option| {
                        let mut inner = Vec::new();
                        self.judge(option, value, at, &mut inner);
                        inner.is_empty()
                    });
                    if fitting.count() != 1 {
                        faults.push(format!("{at}: {value} fits not exactly one of {rule}"));
                    }
                }
                "allOf" => {
                    for part in rule.as_array().into_iter().flatten() {
                        self.judge(part, value, at, faults);
                    }
                }
                "required" => {
                    for name in rule.as_array().into_iter().flatten().filter_map(Value::as_str) {
                        if value.get(name).is_none() {
                            faults.push(format!("{at}: {name} is missing"));
                        }
                    }
                }
                "maxItems" => {
                    let most = rule.as_u64().expect("limits in use are small");
                    if value.as_array().is_some_and(|items| items.len() as u64 > most) {
                        faults.push(format!("{at}: more than {most} items"));
                    }
                }
                "minimum" | "maximum" => {
                    let limit = rule.as_i64().expect("limits in use are small");
                    // What is no number is `type`'s affair; what is above i64 is above any limit.
                    let Some(number) = value.as_i64().or(value.as_u64().map(|_| i64::MAX)) else {
                        continue;
                    };
                    let is_within =
                        if keyword == "minimum" { number >= limit } else { number <= limit };
                    if !is_within {
                        faults.push(format!("{at}: {value} is beyond the {keyword} {limit}"));
                    }
                }
                "maxLength" => {
                    let length = value.as_str().map_or(0, |text| text.chars().count()) as u64;
                    if rule.as_u64().is_none_or(|limit| length > limit) {
                        faults.push(format!("{at}: {value} is longer than {rule}"));
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.judge(rule, item, &format!("{at}[{index}]"), faults);
                    }
                }
                "properties" | "additionalProperties" => {} // judged together below
                "propertyNames" | "format" | "pattern" | "description" | "default" | "example"
                | "title" => {}
                other => faults.push(format!("{at}: this judge does not know {other}")),
            }
        }
        if let Value::Object(members) = value {
            self.judge_members(schema, members, at, faults);
        }
    }

    fn judge_members(
        &self,
        schema: &Map<String, Value>,
        members: &Map<String, Value>,
        at: &str,
        faults: &mut Vec<String>,
    ) {
        let named = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties").filter(|others| others.is_object());
        if named.is_none() && others.is_none() {
            return; // a reference, a choice, or any object at all
        }
        for (name, member) in members {
            let place = format!("{at}.{name}");
            match (named.and_then(|named| named.get(name)), others) {
                (Some(rule), _) | (None, Some(rule)) => self.judge(rule, member, &place, faults),
                (None, None) => faults.push(format!("{place}: not in the document")),
            }
        }
    }

    fn resolve(&self, reference: &Value) -> Option<&Value> {
        self.document.pointer(reference.as_str()?.strip_prefix('#')?)
    }
}

fn is_of_type(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    }
}

#[test]
fn the_judge_finds_what_a_schema_does_not_allow() {
    use serde_json::json;
    let document = json!({"components": {"schemas": {"Port": {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "maxLength": 4},
            "vni": {"type": "integer", "minimum": 0, "maximum": 7},
            "link": {"type": "string", "enum": ["up", "down"]},
            "rings": {"type": "array", "maxItems": 1},
            "drops": {"type": "object", "additionalProperties": {"type": "integer"}},
        },
    }}}});
    let schema = json!({"type": "array", "items": {"$ref": "#/components/schemas/Port"}});
    let judge = |value: Value| faults(&document, &schema, &json!([value]));
    assert_eq!(judge(json!({"name": "a", "vni": 7, "link": "up", "drops": {"x": 1}})), [""; 0]);
    for wrong in [
        json!({}),
        json!({"name": 1}),
        json!({"name": "abcde"}),
        json!({"name": "a", "vni": 8}),
        json!({"name": "a", "vni": -1}),
        json!({"name": "a", "rings": [0, 1]}),
        json!({"name": "a", "link": "left"}),
        json!({"name": "a", "drops": {"x": "1"}}),
        json!({"name": "a", "new": 1}),
    ] {
        assert_eq!(judge(wrong.clone()).len(), 1, "{wrong}");
    }
}
