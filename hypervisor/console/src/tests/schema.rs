//! `docs/console-schema.json`: the JSON Schema of every reply, derived from the types of the reports, and the check that
//! replies are what it says.

extern crate std;

use alloc::{
    borrow::Cow,
    collections::BTreeMap,
    format,
    string::{String, ToString},
    vec::Vec,
};
use std::{env, fs};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use super::{Terminal, commands, every_way_to_call};
use crate::{
    Class, PROTOCOL,
    command::Context,
    hexdump::HexBytes,
    host::{Hex, failure::Code},
    session::Session,
};

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../docs/console-schema.json"
);

impl JsonSchema for Hex {
    fn schema_name() -> Cow<'static, str> {
        "Hex".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A physical address or a bit mask, in hexadecimal.",
            "type": "string",
            "pattern": "^0x[0-9a-f]+$"
        })
    }
}

impl JsonSchema for HexBytes {
    fn schema_name() -> Cow<'static, str> {
        "HexBytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bytes, two hexadecimal digits each.",
            "type": "string",
            "pattern": "^([0-9a-f]{2})*$"
        })
    }
}

impl JsonSchema for Class {
    fn schema_name() -> Cow<'static, str> {
        "Class".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "The right that a command needs; each includes those before it.",
            "type": "string",
            "enum": ([Class::Read, Class::OwnTd, Class::Td, Class::Host].map(Class::name))
        })
    }
}

/// Returns the schema of every reply.
fn schema() -> Value {
    let mut generator = SchemaGenerator::default();
    let mut reports: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for command in commands::ALL.all() {
        for arguments in every_way_to_call(command.args) {
            let mut terminal = Terminal::for_command(command.name);
            let line = [command.name, &arguments].join(" ");
            let call = commands::ALL
                .decode(&line)
                .expect("a call")
                .expect("no blank line");
            let mut session = Session {
                json: true,
                ..Session::default()
            };
            let mut context = Context {
                commands: commands::ALL,
                host: &mut terminal.machine,
                session: &mut session,
            };
            let reply = (command.run)(&mut context, &call.args).expect("it succeeds");
            let schema = reply.schema(&mut generator).to_value();
            let all = reports.entry(command.name).or_default();
            if !all.contains(&schema) {
                all.push(schema);
            }
        }
    }
    let replies = reports.iter().map(|(name, reports)| {
        json!({
            "title": name,
            "type": "object",
            "properties": {
                "cmd": { "const": name },
                "ok": { "const": true },
                "protocol": { "const": PROTOCOL }
            },
            "required": ["cmd", "ok", "protocol"],
            "anyOf": reports
        })
    });
    let error = json!({
        "title": "error",
        "type": "object",
        "properties": {
            "cmd": { "type": "string", "description": "The command, or the first word of a line that names none." },
            "ok": { "const": false },
            "protocol": { "const": PROTOCOL },
            "code": { "enum": Code::ALL.iter().map(|code| code.name()).collect::<Vec<_>>() },
            "error": { "type": "string", "description": "A sentence for people." }
        },
        "required": ["cmd", "ok", "protocol", "code", "error"]
    });
    let replies: Vec<Value> = replies.chain([error]).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A reply of Seamark's console in JSON mode",
        "oneOf": replies,
        "$defs": generator.take_definitions(true)
    })
}

#[test]
fn the_schema_in_the_documentation_is_that_of_the_code() {
    let text = serde_json::to_string_pretty(&schema()).expect("JSON") + "\n";
    if fs::read_to_string(FILE).is_ok_and(|file| file == text) {
        return;
    }
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(FILE, text).expect("docs/console-schema.json can be written");
        return;
    }
    panic!(
        "docs/console-schema.json is out of date; if a field was removed or changed its meaning, PROTOCOL must grow; \
         then run\n\n    UPDATE_DOCS=1 cargo test -p console tests::schema\n"
    );
}

#[test]
fn every_reply_is_what_the_schema_says() {
    let root = schema();
    for command in commands::ALL.all() {
        for arguments in every_way_to_call(command.args) {
            let mut terminal = Terminal::for_command(command.name);
            terminal.send("json on\r");
            let line = [command.name, &arguments].join(" ").trim_end().to_string();
            let reply = terminal.json(&line);
            check(&root, &root, &reply).unwrap_or_else(|why| panic!("{line}: {why}: {reply}"));
        }
    }
    let mut terminal = Terminal::default();
    terminal.machine.without_tdx = true;
    terminal.send("json on\r");
    for line in [
        "frobnicate",
        "td dump",
        "td show x",
        "td show 1",
        "tdx",
        "report",
        "top",
        "td start 1",
        "json x",
    ] {
        let reply = terminal.json(line);
        check(&root, &root, &reply).unwrap_or_else(|why| panic!("{line}: {why}: {reply}"));
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let root = schema();
    let mut terminal = Terminal::default();
    terminal.send("json on\r");
    let good = terminal.json("td list");
    assert_eq!(check(&root, &root, &good), Ok(()));
    type Spoil = fn(&mut Value);
    let ways: [Spoil; 6] = [
        |reply| reply["cmd"] = "td lists".into(),
        |reply| reply["protocol"] = 2.into(),
        |reply| reply["tds"] = Value::Null,
        |reply| reply["tds"][0]["state"] = "asleep".into(),
        |reply| reply["tds"][0]["id"] = "1".into(),
        |reply| drop(reply["tds"][0].as_object_mut().unwrap().remove("name")),
    ];
    for (number, spoil) in ways.iter().enumerate() {
        let mut wrong = good.clone();
        spoil(&mut wrong);
        assert!(
            check(&root, &root, &wrong).is_err(),
            "way {number}: {wrong}"
        );
    }
}

/// Checks a value against a schema, as far as the schemas here go. A keyword that is not known here is an error.
fn check(root: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let schema = match schema {
        Value::Bool(true) => return Ok(()),
        Value::Object(schema) => schema,
        other => return Err(format!("nothing is {other}")),
    };
    let each = |schemas: &Value| -> Vec<Result<(), String>> {
        let schemas = schemas.as_array().into_iter().flatten();
        schemas.map(|schema| check(root, schema, value)).collect()
    };
    for (keyword, is) in schema {
        let holds = match keyword.as_str() {
            "$ref" => {
                let path = is.as_str().and_then(|path| path.strip_prefix('#'));
                let target = path.and_then(|path| root.pointer(path));
                check(root, target.ok_or("a reference leads nowhere")?, value)?;
                true
            }
            "type" => match is {
                Value::Array(types) => types.iter().any(|kind| is_of_type(kind, value)),
                kind => is_of_type(kind, value),
            },
            "const" => is == value,
            "enum" => is.as_array().is_some_and(|all| all.contains(value)),
            "properties" => {
                for (name, schema) in is.as_object().into_iter().flatten() {
                    if let Some(value) = value.get(name) {
                        check(root, schema, value).map_err(|why| format!("{name}: {why}"))?;
                    }
                }
                true
            }
            "required" => {
                let names = is
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str);
                let mut missing = names.filter(|name| value.get(name).is_none());
                match missing.next() {
                    Some(name) => return Err(format!("{name} is missing")),
                    None => true,
                }
            }
            "items" => {
                for value in value.as_array().into_iter().flatten() {
                    check(root, is, value)?;
                }
                true
            }
            "allOf" => each(is).iter().all(Result::is_ok),
            "anyOf" => each(is).iter().any(Result::is_ok),
            "oneOf" => {
                let all = each(is);
                // The branch of this command says most.
                let branches = is.as_array().into_iter().flatten();
                let own = branches
                    .zip(&all)
                    .find(|(branch, _)| !value["cmd"].is_null() && branch["title"] == value["cmd"]);
                if let Some((_, Err(why))) = own
                    && all.iter().all(Result::is_err)
                {
                    return Err(why.clone());
                }
                all.iter().filter(|result| result.is_ok()).count() == 1
            }
            "minimum" => value
                .as_f64()
                .is_none_or(|number| Some(number) >= is.as_f64()),
            "maximum" => value
                .as_f64()
                .is_none_or(|number| Some(number) <= is.as_f64()),
            "pattern" => value.as_str().is_some_and(|text| match is.as_str() {
                Some("^0x[0-9a-f]+$") => text.strip_prefix("0x").is_some_and(is_hex),
                _ => text.is_empty() || is_hex(text),
            }),
            "title" | "description" | "format" | "$schema" | "$defs" | "default" => true,
            other => return Err(format!("the keyword {other} is not known")),
        };
        if !holds {
            return Err(format!("{keyword} {is} does not hold for {value}"));
        }
    }
    Ok(())
}

fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_of_type(kind: &Value, value: &Value) -> bool {
    match kind.as_str() {
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("array") => value.is_array(),
        Some("object") => value.as_object().is_some_and(|_: &Map<String, Value>| true),
        _ => false,
    }
}
