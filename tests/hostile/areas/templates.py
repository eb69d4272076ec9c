"""Chat templates: programs that came with a download."""

import mutate
from harness import Area
from world import SMALL

AREA = Area("templates")
GOOD = (SMALL / "chat_template.jinja").read_text()


def add(name, template, codes=(1,), **limits):
    def play(desk):
        made = template() if callable(template) else template
        desk.generate("--prompt", "x", model=desk.model({"chat_template.jinja": made})).expect(*codes).within(**limits)

    AREA.add(name, play)


def doubling(start, step, times=60):
    return (
        "{% set ns = namespace(x="
        + start
        + ") %}{% for i in range("
        + str(times)
        + ") %}{% set ns.x = "
        + step
        + " %}{% endfor %}{{ ns.x|length }}"
    )


add("loop", "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
add("range-of-10-12", "{{ range(1000000000000)|list|length }}")
add("range-of-2-63", "{{ range(9223372036854775807)|length }}", codes=(0, 1))
add("range-step-0", "{{ range(0, 5, 0)|list }}")
add("doubles-a-text", doubling("'x'", "ns.x ~ ns.x"))
add("doubles-a-text-by-plus", doubling("'x'", "ns.x + ns.x"))
add("doubles-a-list", doubling("[0]", "ns.x + ns.x"))
add("doubles-a-list-of-lists", doubling("[0]", "[ns.x, ns.x]", 40) + "{{ ns.x|string|length }}")
add("doubles-a-list-in-json", doubling("[0]", "[ns.x, ns.x]", 40) + "{{ ns.x|tojson }}")
add("doubles-by-multiplying", doubling("'x'", "ns.x * 2"))
add("doubles-by-joining", doubling("'x'", "[ns.x, ns.x]|join"))
add("doubles-by-replacing", doubling("'x'", "ns.x|replace('x', 'xx')"))
add(
    "doubles-by-a-block",
    "{% set ns = namespace(x='x') %}{% for i in range(60) %}"
    "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
)
add("doubles-dictionaries", doubling("{'a': 0}", "{'a': ns.x, 'b': ns.x}", 40) + "{{ ns.x|string|length }}")
add("text-times-10-12", "{{ 'x' * 1000000000000 }}")
add("list-times-10-12", "{{ ([0] * 1000000000000)|length }}", codes=(0, 1))
add("text-times-2-63", "{{ 'x' * 9223372036854775807 }}")
add("power", "{{ 10 ** 10 ** 10 }}", codes=(0, 1))
add("power-of-integers", "{{ (2 ** 62) * (2 ** 62) * (2 ** 62) }}", codes=(0, 1))
add("divides-by-0", "{{ 1 / 0 }}", codes=(0, 1))
add("divides-by-0-whole", "{{ 1 // 0 }}")
add("rest-by-0", "{{ 1 % 0 }}")
add("smallest-by-minus-1", "{{ (-9223372036854775807 - 1) // -1 }}", codes=(0, 1))
add("smallest-negated", "{{ -(-9223372036854775807 - 1) }}", codes=(0, 1))
add("absolute-smallest", "{{ (-9223372036854775807 - 1)|abs }}", codes=(0, 1))
add("number-of-digits", "{{ " + "9" * 10_000 + " }}", codes=(0, 1))
add("indents-10-12", "{{ 'x\ny'|indent(1000000000000) }}", codes=(0, 1))
add("centers-10-12", "{{ 'x'|center(1000000000000) }}", codes=(0, 1))
add("format-width", "{{ '%999999999999d'|format(5) }}", codes=(0, 1))
add("format-method", "{{ '{:>999999999999}'.format(5) }}", codes=(0, 1))
add("slices-by-0", "{{ [1,2,3][::0] }}")
add("slices-beyond", "{{ 'abc'[9223372036854775807:-9223372036854775807:-1] }}", codes=(0, 1))
add("batches-by-0", "{{ [1,2]|batch(0)|list }}", codes=(0, 1))
add("slice-filter-0", "{{ [1,2]|slice(0)|list }}", codes=(0, 1))
add("rounds-much", "{{ 1.5|round(999999999) }}", codes=(0, 1))
add("splits-on-nothing", "{{ 'abc'.split('') }}", codes=(0, 1))
add("replaces-nothing", "{{ 'abc'|replace('', 'x' * 1000) }}", codes=(0, 1))
add("recursive-macro", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")
add(
    "recursive-macro-wide", "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"
)
add("recursive-loop", "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}")
add("includes-itself", "{% include 'chat_template.jinja' %}")
add("includes-a-file", "{% include '/etc/passwd' %}")
add("imports", "{% import 'os' as os %}{{ os.environ }}")
add("extends-itself", "{% extends 'chat_template.jinja' %}")
add("reaches-for-python", "{{ ''.__class__.__mro__[1].__subclasses__() }}", codes=(0, 1))
add("reaches-for-globals", "{{ self }}{{ config }}{{ request }}{{ cycler.__init__.__globals__.os }}", codes=(0, 1))
add("raises", "{{ raise_exception('no') }}")
add("raises-much", "{{ raise_exception('x' * 10000000) }}")
add("raises-several-lines", "{{ raise_exception('a\nerror: b\nerror: c') }}")
add("raises-control-letters", "{{ raise_exception('\x1b[2J\x07') }}")
add("time-format", "{{ strftime_now('%' * 100000) }}", codes=(0, 1))
add("time-format-unknown", "{{ strftime_now('%Q %9999999999d') }}", codes=(0, 1))
add("parentheses", lambda: "{{ " + "(" * 200_000 + "1" + ")" * 200_000 + " }}")
add("brackets", lambda: "{{ " + "[" * 200_000 + "]" * 200_000 + " }}")
add("braces", lambda: "{{ " + "{1:" * 100_000 + "1" + "}" * 100_000 + " }}")
add("nots", lambda: "{{ " + "not " * 200_000 + "1 }}", codes=(0, 1))
add("minuses", lambda: "{{ " + "-" * 500_000 + "1 }}", codes=(0, 1))
add("additions", lambda: "{{ 1" + "+1" * 200_000 + " }}", codes=(0, 1))
add("joins", lambda: "{{ 1" + "~1" * 200_000 + " }}", codes=(0, 1))
add("attributes", lambda: "{{ a" + ".a" * 200_000 + " }}", codes=(0, 1))
add("filters", lambda: "{{ 1" + "|string" * 200_000 + " }}", codes=(0, 1))
add("calls", lambda: "{{ a" + "()" * 200_000 + " }}")
add("choices", lambda: "{{ 1" + " if 1 else 1" * 50_000 + " }}", codes=(0, 1))
add("ifs", lambda: "{% if 1 %}" * 50_000 + "{% endif %}" * 50_000, codes=(0, 1))
add("elifs", lambda: "{% if 0 %}" + "{% elif 0 %}" * 50_000 + "{% endif %}", codes=(0, 1))
add("loops-inside-loops", lambda: "{% for i in [1] %}" * 20_000 + "{% endfor %}" * 20_000, codes=(0, 1))
add("macros-inside-macros", lambda: "{% macro a() %}" * 20_000 + "{% endmacro %}" * 20_000, codes=(0, 1))
add(
    "blocks-inside-blocks",
    lambda: "".join(f"{{% block b{i} %}}" for i in range(20_000)) + "{% endblock %}" * 20_000,
    codes=(0, 1),
)
add("a-million-variables", lambda: "".join(f"{{% set v{i} = {i} %}}" for i in range(300_000)), codes=(0, 1))
add("comment-never-ends", "{# x", codes=(0, 1))
add("text-of-30-mb", lambda: "x" * (30 << 20))
add("raw-of-30-mb", lambda: "{% raw %}" + "{{" * (10 << 20) + "{% endraw %}")
add("nul", "\0{{ messages }}", codes=(0, 1))
add("writes-nothing", "{# nothing #}")
add("writes-pictures", "<|image|>" * 9)
add("writes-unknown-letters", "\ue000\U0010ffff" + GOOD, codes=(0, 1))
add("forgets-the-question", "[gMASK]<sop><|assistant|>\n", codes=(0, 1))
add("doubles-the-question", GOOD + GOOD, codes=(0, 1))
add("value-that-holds-itself", "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}{{ ns|tojson }}", codes=(0, 1))
add("list-that-holds-itself", "{% set x = [] %}{% set _ = x.append(x) %}{{ x }}", codes=(0, 1))
add(
    "compares-what-holds-itself",
    "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns == ns }}{{ [ns, ns]|sort }}{{ [ns]|unique|list }}",
    codes=(0, 1),
)
add("sorts-much", "{{ range(3000000)|list|sort(reverse=true)|length }}", codes=(0, 1))
add(
    "lists-without-end",
    "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + range(9999)|list %}{% endfor %}",
)
add(
    "prints-without-end",
    "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
)


@AREA.case
def template_in_the_tokenizer_config(desk):
    for value in (
        '"{% for %}"',
        "5",
        "null",
        "[]",
        '[{"name": "default", "template": "{% for %}"}]',
        '[{"name": 5}]',
        '"' + "{{ x" * 9999 + '"',
        '"{{ 1 // 0 }}"',
    ):
        model = desk.copy(
            desk.world.model,
            f"model-{len(desk.outcomes)}",
            {"chat_template.jinja": None, "tokenizer_config.json": '{"chat_template": ' + value + "}"},
        )
        desk.generate("--prompt", "x", model=model).refused()


WORDS = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{% endfor %}",
    "{% for m in messages %}",
    "{{ messages }}",
    "{% set x = messages %}",
    "{{ x|tojson }}",
    "{% if messages %}",
    "{% endif %}",
    "{% else %}",
    "loop.index",
    "{{ raise_exception('x') }}",
    "message.content",
    "|join",
    "namespace()",
    "[gMASK]",
    "<|image|>",
    "{#",
    "#}",
    "-",
    "'",
    "(",
    ")",
    "not",
    "is defined",
    "in",
]


def odd(desk):
    model = desk.model({"chat_template.jinja": mutate.odd_text(desk.random, GOOD, WORDS)})
    desk.look(desk.world.image, model=model).expect(0, 1)


for number in range(25):
    AREA.add(f"odd-{number:02}", odd)
