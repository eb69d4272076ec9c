"""The Markdown report, from whatever results are there."""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence

import bench_tables
import state
from parts import Part
from state import Result

# Characters of a cell, and rows of a table: a report is read by people, everything is in the JSON files.
CELL = 160
REASON = 600
ROWS = 60


def markdown(results: Mapping[str, Result], parts: Sequence[Part]) -> str:
    """Machine, summary, then a section for each part."""
    sections = [heading(results), summary(results, parts), beside_transformers(results)]
    for part in parts:
        result = results.get(part.name)
        if result is not None:
            sections.append(section(part, result))
    return "\n\n".join(text.strip() for text in sections if text.strip()) + "\n"


def heading(results: Mapping[str, Result]) -> str:
    machine = first_object(results.get("machine"))
    name = next((gpu.get("name", "") for gpu in machine.get("gpus") or []), "") or machine.get("processor") or "unknown machine"
    keys = sorted({json.dumps(result.key) for result in results.values() if result.key})
    lines = [f"# {name}, {time.strftime('%Y-%m-%d', time.gmtime())}", ""]
    lines += [", ".join(f"{key} {value}" for key, value in json.loads(key).items()) for key in keys]
    if len(keys) > 1:
        lines += ["", "**Results of several programs, backends or profiles are mixed here.**"]
    return "\n".join(lines)


def summary(results: Mapping[str, Result], parts: Sequence[Part]) -> str:
    """Status of each part; those without a result are named too."""
    counts: Dict[str, int] = {}
    rows = []
    for part in parts:
        result = results.get(part.name) or Result(part.name, "not reached")
        counts[result.status] = counts.get(result.status, 0) + 1
        status = result.status if result.status in (state.OK, state.UNAVAILABLE) else f"**{result.status}**"
        rows.append([part.name, status, f"{result.seconds:.1f}", f"{part.limit:.0f}", headline(result)])
    total = sum(result.seconds for result in results.values())
    counted = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"{counted}; {total:.0f} s in all.\n\n" + table(["part", "status", "seconds", "limit", "result"], rows)


def headline(result: Result) -> str:
    """The reason of a failure, or what a success amounts to."""
    try:
        return headline_of(result)
    except Exception as error:  # see `section`
        return f"cannot be shown: {type(error).__name__}"


def headline_of(result: Result) -> str:
    if result.status != state.OK:
        return result.reason
    values = objects(result)
    checks = [value for value in values if is_check(value)]
    return f"{len(checks)} comparisons within tolerance" if checks else bench_tables.headline(values)


def is_check(value: Mapping[str, Any]) -> bool:
    """Whether it is a comparison, or the reason why there is none."""
    return "ok" in value and ("quantity" in value or "error" in value)


def section(part: Part, result: Result) -> str:
    lines = [f"## {part.title}", "", f"`{shown_command(result)}`", ""]
    if result.status != state.OK:
        lines += [f"**{result.status}**: {escape(result.reason, REASON)}", ""]
    if result.gpu:
        lines += ["GPU while it ran: " + ", ".join(f"{key} {value:g}" for key, value in result.gpu.items()), ""]
    try:
        lines += body(part, result)
    except Exception as error:  # a result of an unexpected form must not take the report with it
        lines += [f"cannot be shown ({type(error).__name__}: {escape(str(error))}); see parts/{result.part}.json"]
    return "\n".join(lines)


def shown_command(result: Result) -> str:
    """The command with the names of files instead of their paths."""
    words = [word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in result.command]
    return " ".join(words).replace("`", "'")


def body(part: Part, result: Result) -> List[str]:
    values = objects(result)
    if not values:
        return []
    return renderer(part.name, values)(values)


def renderer(name: str, values: List[Dict[str, Any]]) -> Callable[[List[Dict[str, Any]]], List[str]]:
    """How values of this form are shown."""
    if name in RENDERERS:
        return RENDERERS[name]
    if any("workload" in value or "workloads" in value for value in values):
        return bench_section
    return checks_table if any(map(is_check, values)) else rows_table


def objects(result: Result) -> List[Dict[str, Any]]:
    """The JSON objects of a result, lists flattened."""
    found: List[Dict[str, Any]] = []
    for value in result.output:
        found += [inner for inner in (value if isinstance(value, list) else [value]) if isinstance(inner, dict)]
    return found


def first_object(result: Any) -> Dict[str, Any]:
    return next(iter(objects(result)), {}) if result is not None else {}


def checks_table(values: List[Dict[str, Any]]) -> List[str]:
    """Comparisons: those that failed first, then the worst. What is no comparison is the frame of the others."""
    frame = [value for value in values if not is_check(value)]
    ordered = sorted(filter(is_check, values), key=lambda value: (bool(value["ok"]), -share_of_tolerance(value)))
    keys = [key for key in columns(ordered) if key != "ok"]
    rows = [[*(show(value.get(key)) for key in keys), "ok" if value["ok"] else "**FAIL**"] for value in ordered]
    head = [", ".join(f"{escape(key)} {escape(show(value))}" for key, value in flattened(entry).items()) for entry in frame]
    return [*head, "", table([*keys, ""], rows)]


def share_of_tolerance(value: Mapping[str, Any]) -> float:
    deviation, tolerance = value.get("deviation"), value.get("tolerance")
    numbers = all(isinstance(number, (int, float)) for number in (deviation, tolerance))
    return deviation / tolerance if numbers and tolerance else 0.0


def rows_table(values: List[Dict[str, Any]]) -> List[str]:
    """Objects with the same keys as a table; one object as a list."""
    if len(values) == 1:
        return [f"- {escape(key)}: {escape(show(value), REASON)}" for key, value in flattened(values[0]).items()]
    flat = [flattened(value) for value in values]
    keys = columns(flat)
    return [table(keys, [[show(value.get(key)) for key in keys] for value in flat])]


def machine_list(values: List[Dict[str, Any]]) -> List[str]:
    machine = values[0]
    lines = [f"- **{escape(problem)}**" for problem in machine.get("problems") or []]
    shown = {key: value for key, value in machine.items() if key not in ("problems", "info") and value not in (None, "", [], {})}
    lines += [f"- {escape(key)}: {escape(show(value), REASON)}" for key, value in flattened(shown).items()]
    return [*lines, "", "```text", str(machine.get("info") or "glm4v info: no answer").replace("```", "'''"), "```"]


def flattened(value: Mapping[str, Any], prefix: str = "") -> Dict[str, Any]:
    """Nested objects as `outer.inner`."""
    flat: Dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{prefix}{key}"
        flat.update(flattened(inner, f"{name}.") if isinstance(inner, dict) else {name: inner})
    return flat


def columns(values: Iterable[Mapping[str, Any]]) -> List[str]:
    """Keys in the order of their appearance."""
    return list(dict.fromkeys(key for value in values for key in value))


def show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.0f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)


def escape(text: str, limit: int = CELL) -> str:
    """One line of a cell; control characters of a damaged output do not reach the terminal."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    short = clean if len(clean) <= limit else clean[: limit - 1] + "…"
    return short.replace("|", "\\|").replace("<", "&lt;")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows[:ROWS]]
    text = "\n".join("| " + " | ".join(map(escape, cells)) + " |" for cells in lines)
    left_out = len(rows) - ROWS
    return text + (f"\n\n{left_out} more rows in the JSON file" if left_out > 0 else "")


def bench_section(values: List[Dict[str, Any]]) -> List[str]:
    """Measurements with their ceilings and kernels."""
    lines = [*map(escape_line, bench_tables.ceilings(values)), "", table(bench_tables.HEAD, bench_tables.rows(values))]
    kernels = bench_tables.kernels(values)
    others = [value for value in values if "workload" not in value and "workloads" not in value]
    lines += ["", table(bench_tables.KERNELS_HEAD, kernels)] if kernels else []
    return lines + (["", *rows_table(others)] if others else [])


def escape_line(text: str) -> str:
    return escape(text, REASON)


def beside_transformers(results: Mapping[str, Result]) -> str:
    """Ratios, once both sides are there."""
    theirs = objects(results["transformers"]) if "transformers" in results else []
    ours = [value for name in MEASURED if name in results for value in objects(results[name])]
    try:
        rows = bench_tables.beside(ours, theirs)
    except (KeyError, TypeError, ZeroDivisionError):
        return ""
    return "Beside transformers:\n\n" + table(bench_tables.BESIDE_HEAD, rows) if rows else ""


# Parts whose workloads transformers has too.
MEASURED = ("decode", "prefill")
RENDERERS: Dict[str, Callable[[List[Dict[str, Any]]], List[str]]] = {"machine": machine_list}
