//! Limits on the length of the lists that a template makes.
//!
//! Gradual growth is caught by `watchdog.rs`. Lists are different: minijinja adds and repeats them lazily, so sixty doublings
//! cost nothing until the list is used, and then a single allocation beyond any machine aborts the process. So the value of every
//! `+`, `*` and `set` is checked where it is made: the template is compiled with a function call around these expressions.
//! Filters that allocate by a number get a maximum for it.

use std::sync::LazyLock;

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::{WhitespaceConfig, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

/// Maximum items of a list; conversations are far shorter.
const MAX_ITEMS: usize = 1_000_000;

/// Sums of a chain between two checks: lists grow by this factor at most in between.
const SUMS_PER_CHECK: usize = 64;

/// The function around the expressions; no template has one of this name.
const FUNCTION: &str = "__glm4v_checked";

/// Filters that allocate by a number.
const SIZED_FILTERS: [&str; 4] = ["batch", "slice", "indent", "format"];

/// Adds the function that [`with_length_checks`] calls, and replaces the filters that allocate by a number.
pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_function(FUNCTION, checked_length);
    for name in SIZED_FILTERS {
        environment.add_filter(name, move |args: Rest<Value>| sized_filter(name, &args));
    }
    // Not of Jinja2, and lazy as well.
    environment.remove_filter("chain");
}

/// The template `name` with a length check around every expression whose value may grow.
pub(super) fn with_length_checks(name: &str, source: &str) -> Result<String, Error> {
    let white = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let template = parse(source, name, SyntaxConfig, white)?;
    let mut found = GrowingExpressions { source, spans: Vec::new() };
    found.statement(&template);
    // Of two that begin or end together, the longer one is outside.
    let opening = |&(start, end): &(usize, usize)| (start, 1, usize::MAX - end, format!("{FUNCTION}("));
    let closing = |&(start, end): &(usize, usize)| (end, 0, usize::MAX - start, ")".to_owned());
    let mut insertions: Vec<_> =
        found.spans.iter().map(opening).chain(found.spans.iter().map(closing)).collect();
    insertions.sort();
    let mut out = String::with_capacity(source.len() + insertions.len() * FUNCTION.len());
    let mut done = 0;
    for (at, _, _, text) in insertions {
        out.push_str(&source[done..at]);
        out.push_str(&text);
        done = at;
    }
    out.push_str(&source[done..]);
    Ok(out)
}

/// Passes a list on if it is short enough. A lazy one is evaluated, so that nothing lazy builds on it.
fn checked_length(value: Value) -> Result<Value, Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(value);
    }
    let too_long =
        || Error::new(ErrorKind::InvalidOperation, format!("a list of more than {MAX_ITEMS} items"));
    if value.len().is_some_and(|items| items > MAX_ITEMS) {
        return Err(too_long());
    }
    if value.kind() == ValueKind::Seq {
        return Ok(value);
    }
    let items: Vec<Value> = value.try_iter()?.take(MAX_ITEMS + 1).collect();
    if items.len() > MAX_ITEMS { Err(too_long()) } else { Ok(Value::from(items)) }
}

/// A filter of minijinja's that fails on large numbers.
fn sized_filter(name: &str, args: &[Value]) -> Result<Value, Error> {
    static PLAIN: LazyLock<Environment<'static>> = LazyLock::new(Environment::new);
    let large = |value: &Value| value.as_usize().is_some_and(|number| number > MAX_ITEMS);
    let named = |value: &Value| {
        let keys = (value.kind() == ValueKind::Map).then(|| value.try_iter().ok()).flatten();
        keys.into_iter().flatten().any(|key| value.get_item(&key).is_ok_and(|value| large(&value)))
    };
    // The first argument is the filtered value.
    if args.iter().skip(1).any(|value| large(value) || named(value))
        || args.first().is_some_and(has_large_width)
    {
        let problem = format!("{name}: a number of more than {MAX_ITEMS}");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    PLAIN.empty_state().apply_filter(name, args)
}

/// Whether a format string has a width or precision of seven digits or more.
pub(super) fn has_large_width(format: &Value) -> bool {
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > 6);
    format.as_str().is_some_and(|text| text.contains(['%', '{']) && digits(text))
}

/// Finds the expressions of a template whose values may grow.
struct GrowingExpressions<'a> {
    source: &'a str,
    /// First byte of each, and the byte after its last.
    spans: Vec<(usize, usize)>,
}

impl GrowingExpressions<'_> {
    fn statement(&mut self, statement: &Stmt<'_>) {
        match statement {
            Stmt::Template(of) => self.body(&of.children),
            Stmt::EmitExpr(of) => self.expression(&of.expr),
            Stmt::ForLoop(of) => {
                self.expression(&of.iter);
                self.optional(of.filter_expr.as_ref());
                self.body(&of.body);
                self.body(&of.else_body);
            }
            Stmt::IfCond(of) => {
                self.expression(&of.expr);
                self.body(&of.true_body);
                self.body(&of.false_body);
            }
            Stmt::WithBlock(of) => {
                of.assignments.iter().for_each(|(_, value)| self.expression(value));
                self.body(&of.body);
            }
            Stmt::Set(of) => {
                let target = of.target.span().end_offset as usize;
                if let Some(sign) = self.source[target..].find('=') {
                    self.spans.push((target + sign + 1, of.span().end_offset as usize));
                }
                self.expression(&of.expr);
            }
            Stmt::SetBlock(of) => {
                self.optional(of.filter.as_ref());
                self.body(&of.body);
            }
            Stmt::AutoEscape(of) => {
                self.expression(&of.enabled);
                self.body(&of.body);
            }
            Stmt::FilterBlock(of) => {
                self.expression(&of.filter);
                self.body(&of.body);
            }
            Stmt::Macro(of) => {
                of.defaults.iter().for_each(|value| self.expression(value));
                self.body(&of.body);
            }
            Stmt::CallBlock(of) => {
                self.arguments(&of.call.args);
                of.macro_decl.defaults.iter().for_each(|value| self.expression(value));
                self.body(&of.macro_decl.body);
            }
            Stmt::Do(of) => self.arguments(&of.call.args),
            Stmt::Block(of) => self.body(&of.body),
            // Text, and statements that need other templates, of which there are none.
            _ => {}
        }
    }

    fn body(&mut self, statements: &[Stmt<'_>]) {
        statements.iter().for_each(|statement| self.statement(statement));
    }

    fn expression(&mut self, expression: &Expr<'_>) {
        match expression {
            Expr::BinOp(_) => self.chain(expression),
            Expr::Slice(of) => {
                self.expression(&of.expr);
                [&of.start, &of.stop, &of.step].into_iter().for_each(|part| self.optional(part.as_ref()));
            }
            Expr::UnaryOp(of) => self.expression(&of.expr),
            Expr::Compare(of) => {
                self.expression(&of.expr);
                of.ops.iter().for_each(|op| self.expression(&op.expr));
            }
            Expr::IfExpr(of) => {
                self.expression(&of.test_expr);
                self.expression(&of.true_expr);
                self.optional(of.false_expr.as_ref());
            }
            Expr::Filter(of) => {
                self.optional(of.expr.as_ref());
                self.arguments(&of.args);
            }
            Expr::Test(of) => {
                self.expression(&of.expr);
                self.arguments(&of.args);
            }
            Expr::GetAttr(of) => self.expression(&of.expr),
            Expr::GetItem(of) => {
                self.expression(&of.expr);
                self.expression(&of.subscript_expr);
            }
            Expr::Call(of) => {
                self.expression(&of.expr);
                self.arguments(&of.args);
            }
            Expr::List(of) => of.items.iter().for_each(|item| self.expression(item)),
            Expr::Map(of) => of.keys.iter().chain(&of.values).for_each(|item| self.expression(item)),
            Expr::Var(_) | Expr::Const(_) => {}
        }
    }

    /// Operators from left to right, `a + b + c`: checks the last sum, and every [`SUMS_PER_CHECK`]th before.
    fn chain(&mut self, mut expression: &Expr<'_>) {
        let mut sums = 0usize;
        while let Expr::BinOp(of) = expression {
            let is_checked = match of.op {
                BinOpKind::Add => {
                    sums += 1;
                    sums % SUMS_PER_CHECK == 1
                }
                BinOpKind::Mul => true,
                _ => false,
            };
            if is_checked {
                let span = of.span();
                self.spans.push((span.start_offset as usize, span.end_offset as usize));
            }
            self.expression(&of.right);
            expression = &of.left;
        }
        self.expression(expression);
    }

    fn optional(&mut self, expression: Option<&Expr<'_>>) {
        expression.into_iter().for_each(|expression| self.expression(expression));
    }

    fn arguments(&mut self, arguments: &[CallArg<'_>]) {
        for argument in arguments {
            match argument {
                CallArg::Pos(value)
                | CallArg::Kwarg(_, value)
                | CallArg::PosSplat(value)
                | CallArg::KwargSplat(value) => self.expression(value),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_growing_expressions_are_wrapped_in_a_call() {
        let of = |source: &str| with_length_checks("a", source).unwrap().replace(FUNCTION, "M");

        assert_eq!(of("{{ a + b + (c * 2) }}!"), "{{ M(a + b + (M(c * 2))) }}!");
        assert_eq!(of("{% set ns.l = (x[1:])[0] -%}"), "{% set ns.l =M( (x[1:])[0]) -%}");
        assert_eq!(
            of("{{ f(a=(b + c).d, *e) ~ 'a + b' }}{# a + b #}"),
            "{{ f(a=(M(b + c)).d, *e) ~ 'a + b' }}{# a + b #}"
        );
        assert_eq!(
            of("{% set a = ('=' + b) if c - d else e %}"),
            "{% set a =M( (M('=' + b)) if c - d else e) %}"
        );
        assert_eq!(of("{{ 'ß' + a.b }}"), "{{ M('ß' + a.b) }}");
        let sums = of(&format!("{{{{ a{} }}}}", " + a".repeat(200)));
        assert_eq!(sums.matches("M(").count(), 4);
    }
}
