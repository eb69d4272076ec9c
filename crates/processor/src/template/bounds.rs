//! Lists of a template that may not grow without end.
//!
//! Memory that grows bit by bit is seen by `guard.rs`. A list is different: adding and repeating are lazy, so sixty doublings
//! cost nothing until the list is used, and then one request for memory that no machine has aborts the process. So the
//! value of every `+`, `*` and `set` is measured where it comes to be: the template is compiled with a call of a function around
//! them. Filters that ask for memory by a number get no large one.

use std::sync::LazyLock;

use minijinja::machinery::ast::{BinOpKind, CallArg, Expr, Stmt};
use minijinja::machinery::{WhitespaceConfig, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

/// Most items of a list that a template makes; conversations are far shorter.
const MAX_ITEMS: usize = 1_000_000;

/// Sums of a chain after which the sum so far is measured: lists grow by this factor at most before they are.
const MEASURED: usize = 64;

/// The function around the expressions, by a name that no template has.
const FUNCTION: &str = "__glm4v_measured";

/// Filters that ask for memory by a number.
const BY_NUMBER: [&str; 4] = ["batch", "slice", "indent", "format"];

/// Adds what [`measured`] templates need.
pub(super) fn register(environment: &mut Environment<'static>) {
    environment.add_function(FUNCTION, measure);
    for name in BY_NUMBER {
        environment.add_filter(name, move |args: Rest<Value>| by_number(name, &args));
    }
    // Not of Jinja2, and lazy as well.
    environment.remove_filter("chain");
}

/// The template with every growth measured.
pub(super) fn measured(source: &str) -> Result<String, Error> {
    let white = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    let template = parse(source, super::NAME, SyntaxConfig, white)?;
    let mut found = Growth { source, spans: Vec::new() };
    found.statement(&template);
    // Where two begin or end together, the longer one is outside.
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

/// Refuses a list that is too long; one that is lazy is made, so that nothing is built on it.
fn measure(value: Value) -> Result<Value, Error> {
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

/// A filter of minijinja's, without large numbers.
fn by_number(name: &str, args: &[Value]) -> Result<Value, Error> {
    static PLAIN: LazyLock<Environment<'static>> = LazyLock::new(Environment::new);
    let large = |value: &Value| value.as_usize().is_some_and(|number| number > MAX_ITEMS);
    let named = |value: &Value| {
        let keys = (value.kind() == ValueKind::Map).then(|| value.try_iter().ok()).flatten();
        keys.into_iter().flatten().any(|key| value.get_item(&key).is_ok_and(|value| large(&value)))
    };
    // What is filtered comes first.
    if args.iter().skip(1).any(|value| large(value) || named(value)) || args.first().is_some_and(is_wide) {
        let problem = format!("{name}: a number of more than {MAX_ITEMS}");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    PLAIN.empty_state().apply_filter(name, args)
}

/// Whether a format asks for more characters than it should.
pub(super) fn is_wide(format: &Value) -> bool {
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > 6);
    format.as_str().is_some_and(|text| text.contains(['%', '{']) && digits(text))
}

/// The stretches of a template whose values may grow.
struct Growth<'a> {
    source: &'a str,
    /// From the first byte to the byte after the last.
    spans: Vec<(usize, usize)>,
}

impl Growth<'_> {
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
            // Text, and what needs other templates, of which there are none.
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

    /// Operators from left to right, `a + b + c`: the last sum is measured, and one of so many before.
    fn chain(&mut self, mut expression: &Expr<'_>) {
        let mut sums = 0usize;
        while let Expr::BinOp(of) = expression {
            let measured = match of.op {
                BinOpKind::Add => {
                    sums += 1;
                    sums % MEASURED == 1
                }
                BinOpKind::Mul => true,
                _ => false,
            };
            if measured {
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
    fn a_call_stands_around_what_may_grow_and_nothing_else() {
        let of = |source: &str| measured(source).unwrap().replace(FUNCTION, "M");

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
