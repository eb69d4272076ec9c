//! Templates in Jinja's Python dialect against Jinja itself.
#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use glm4v_processor::{ChatTemplateOptions, Message, Processor, parse_messages};
use serde_json::Value;
use support::golden;

/// The processor of a golden checkpoint with another template.
fn with_template(template: &str) -> Result<Processor, String> {
    let processor = Processor::load(&golden().join("checkpoints/glm4v")).unwrap();
    processor.with_template(template.to_owned()).map_err(|error| error.to_string())
}

/// Messages as transformers passes them to templates: images have no source.
fn messages(value: &Value) -> Vec<Message> {
    let mut value = value.clone();
    for message in value.as_array_mut().unwrap() {
        for part in message["content"].as_array_mut().into_iter().flatten() {
            if part["type"] != "text" {
                part["path"] = "x".into();
            }
        }
    }
    parse_messages(&value.to_string(), Path::new("")).unwrap()
}

fn options(input: &Value) -> ChatTemplateOptions {
    ChatTemplateOptions {
        add_generation_prompt: input["add_generation_prompt"].as_bool().unwrap(),
        enable_thinking: input.get("enable_thinking").and_then(Value::as_bool),
        tools: input.get("tools").cloned(),
    }
}

/// Expressions that work in Python and are errors with a line here.
const REFUSED: [&str; 3] = [
    "{{ '%s-%d' % ('a', 3) }}",
    "{{ 'a-b-c'.partition('-') }} {{ 'a'.center(5) }}",
    "{{ [1, 2, 3] | first }}",
];

#[test]
fn python_features_give_the_same_text_or_an_error_with_the_line() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/processor/jinja/cases.json");
    let file: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let (messages, options) = (messages(&file["context"]["messages"]), options(&file["context"]));
    let (mut same, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for case in file["cases"].as_array().unwrap() {
        let template = case["template"].as_str().unwrap();
        let rendered = with_template(template)
            .and_then(|processor| processor.render(&messages, &options).map_err(|error| error.to_string()));
        match (rendered, case["rendered"].as_str()) {
            (Ok(found), Some(expected)) if found == expected => same += 1,
            (Err(error), expected) => {
                assert!(error.starts_with("chat template, line 1: "), "{template}: {error}");
                if expected.is_some() {
                    refused.push(format!("{template}\n    {error}"));
                }
            }
            (found, expected) => wrong.push(format!("{template}\n    {found:?}\n    {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(same, 65, "refused:\n{}", refused.join("\n"));
    assert_eq!(refused.len(), REFUSED.len(), "{}", refused.join("\n"));
    for (refused, start) in refused.iter().zip(REFUSED) {
        assert!(refused.starts_with(start), "{refused}");
    }
}

/// Malicious templates and their errors.
#[test]
fn a_malicious_template_is_aborted() {
    let deep = |start: &str, step: &str, end: &str| format!("{start}{}{end}", step.repeat(30_000));
    let nested = |print: &str| {
        let grow = "{% for i in range(90000) %}{% set ns.l = [ns.l] %}{% endfor %}";
        format!("{{% set ns = namespace(l=[]) %}}{grow}{{{{ {print} }}}}")
    };
    let itself = |print: &str| format!("{{% set ns = namespace() %}}{{% set ns.a = ns %}}{{{{ {print} }}}}");
    let doubled = |start: &str, step: &str| {
        let grow = format!("{{% for i in range(60) %}}{{% set ns.l = {step} %}}{{% endfor %}}");
        format!("{{% set ns = namespace({start}) %}}{grow}{{{{ ns.l | length }}}}")
    };
    // Ends by itself soon after the abort, for the sake of the tests that run at the same time.
    let double = "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(27) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    for (template, needed) in [
        (double.to_owned(), "takes more than 1024 MB of memory"),
        ("{{ 'a' | indent(2000000000, first=true) }}".to_owned(), "indent: a number of more than 1000000"),
        ("{{ 'a\nb' | indent(width=10000000000000) }}".to_owned(), "indent: a number of more than 1000000"),
        ("{{ '%099999999999d' | format(1) }}".to_owned(), "format: a number of more than 1000000"),
        ("{{ '{:>99999999999}'.format(1) }}".to_owned(), "format: asks for too many characters"),
        ("{{ [1] | batch(10000000000000) | length }}".to_owned(), "batch: a number of more than 1000000"),
        ("{{ [1] | slice(10000000000000) | length }}".to_owned(), "slice: a number of more than 1000000"),
        ("{{ ([0] * 1000000000000) | list | length }}".to_owned(), "a list of more than 1000000 items"),
        (doubled("l=[0]", "ns.l + ns.l"), "a list of more than 1000000 items"),
        (doubled("l=(0,)", "(ns.l + ns.l)"), "a list of more than 1000000 items"),
        (doubled("l=range(9)", "ns.l + ns.l"), "a list of more than 1000000 items"),
        (doubled("l=[0]", "ns.l * 2"), "a list of more than 1000000 items"),
        (doubled("l=[0]", "(ns.l[:] + ns.l[:])[:]"), "a list of more than 1000000 items"),
        (doubled("l=[0]", "ns.l + ns.l | list"), "a list of more than 1000000 items"),
        (doubled("l=[0]", "[ns.l, ns.l] | map('list') | first + ns.l"), "a list of more than 1000000 items"),
        (doubled("l={1: 2}", "ns.l | chain(ns.l)"), "unknown filter"),
        (
            format!("{{% set l = [0] %}}{}{{{{ l | length }}}}", "{% set l = l + l %}".repeat(60)),
            "a list of more than",
        ),
        (itself("ns"), "nests over 200 deep"),
        (itself("ns | tojson"), "nests over 200 deep"),
        (itself("ns | string"), "nests over 200 deep"),
        (nested("ns.l"), "nests over 200 deep"),
        (nested("ns.l | tojson"), "nests over 200 deep"),
        ("a".repeat(200_000), "more than the limit of 131072"),
    ] {
        let rendered = with_template(&template).and_then(|processor| {
            processor.render(&[], &ChatTemplateOptions::generation_prompt()).map_err(|e| e.to_string())
        });

        let error = rendered.unwrap_err();
        assert!(error.contains(needed), "{}: {error}", &template[..template.len().min(80)]);
    }
    // Deep, and harmless.
    for template in [
        deep("{{ ", "not ", "1 }}"),
        deep("{{ ", "-", "1 }}"),
        deep("{{ 1", "+1", " }}"),
        deep("{{ a", ".b", " }}"),
        deep("{{ 'a'", "|e", " }}"),
        nested("ns.l == [ns.l]"),
        nested("ns.l").replace("[ns.l]", "ns.l[:]"),
        nested("ns.l").replace("[ns.l]", "ns.l * 1"),
        "{{ ', '.join(['a'] * 1000000) | length }}".to_owned(),
        "{% set s = 'a' * 1000000 %}{{ (s | list | length, s | batch(2) | list | length) }}".to_owned(),
    ] {
        let _ = with_template(&template)
            .map(|processor| processor.render(&[], &ChatTemplateOptions::generation_prompt()));
    }
}

/// Templates as published, which are not ours to copy: `GLM4V_TEMPLATES` names a folder of them, with
/// `renders.json` beside.
#[test]
#[ignore = "needs GLM4V_TEMPLATES, a folder of published templates"]
fn published_templates_render_as_in_jinja() {
    let folder =
        std::env::var_os("GLM4V_TEMPLATES").map(PathBuf::from).expect("GLM4V_TEMPLATES names a folder");
    let renders: Value =
        serde_json::from_str(&fs::read_to_string(folder.join("renders.json")).unwrap()).unwrap();
    let mut compared = 0;
    for (name, cases) in renders.as_object().unwrap() {
        let processor =
            with_template(&fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap()).unwrap();
        // One conversation contains `<|user|>`.
        let processor = processor.with_special_tokens_allowed(true);
        for (case, row) in cases.as_object().unwrap() {
            let rendered =
                processor.render(&messages(&row["input"]["messages"]), &options(&row["input"])).unwrap();
            assert_eq!(rendered, row["rendered"].as_str().unwrap(), "{name}: {case}");
            compared += 1;
        }
    }
    assert!(compared >= 20);
}
