//! What lies over the panes of `orchard top`: a text, the keys, a question; and the line below them. Pure.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Paragraph};

use super::state::{Link, Over, State};
use super::text::plain;
use super::view::Look;

/// What the keys do.
const KEYS: &[(&str, &str)] = &[
    ("↑ ↓ j k", "move; PgUp PgDn g G further"),
    ("Tab", "next pane: workers, VMs, events"),
    ("d Enter", "describe the VM or worker"),
    ("l", "log of the VM's startup script"),
    ("s", "SSH into the VM, or to the worker"),
    ("x", "delete the VM, once confirmed"),
    ("/", "filter by names, states and texts"),
    ("Esc", "close, or take the filter away"),
    ("Ctrl-Z", "suspend"),
    ("q Ctrl-C", "quit"),
];

const HINTS: &str = "Tab pane  d describe  l logs  s ssh  x delete  / filter  ? help  q quit";

/// The last line: the filter while it is typed, else what is to be told, else what the keys do.
pub(super) fn footer(frame: &mut Frame<'_>, area: Rect, state: &State, look: Look) {
    let line = match (&state.over, state.notice(), &state.link) {
        (Some(Over::Filter(_)), ..) => Line::raw(format!("/{}▏", plain(&state.filter))),
        (_, Some(notice), _) if notice.bad => Line::styled(plain(&notice.text), look.of(Color::Red)),
        (_, Some(notice), _) => Line::raw(plain(&notice.text)),
        (_, None, Link::Away(_, why)) => Line::styled(plain(why), look.of(Color::Red)),
        (Some(Over::Text(_)), ..) => Line::raw("↑ ↓ PgUp PgDn scroll  Esc back"),
        _ if !state.filter.is_empty() => {
            Line::raw(format!("filter: {}  (Esc takes it away)  ? help", plain(&state.filter)))
        }
        _ => Line::raw(HINTS),
    };
    frame.render_widget(line, area);
}

/// What lies over the panes, if anything.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State, look: Look) {
    match &state.over {
        None | Some(Over::Filter(_)) => {}
        Some(Over::Help) => {
            let lines = KEYS.iter().map(|(keys, what)| Line::raw(format!(" {keys:<10}{what}"))).collect();
            window(frame, middle(area, 50, KEYS.len()), " Keys ", look, lines);
        }
        Some(Over::Confirm(name, _)) => {
            let bold = Style::new().add_modifier(Modifier::BOLD);
            let lines = vec![
                Line::from(vec![
                    Span::raw(" Delete VM "),
                    Span::styled(name.to_string(), bold),
                    Span::raw(" and its disk?"),
                ]),
                Line::raw(""),
                Line::raw(" y yes   n no"),
            ];
            let width = name.as_str().len() + 28;
            window(frame, middle(area, width.max(30), lines.len()), " Delete ", look, lines);
        }
        Some(Over::Text(text)) => {
            let rows = text.seen();
            let lines = match rows.is_empty() {
                true => vec![Line::raw(format!(" {}", text.empty))],
                false => rows.into_iter().map(|row| Line::raw(format!(" {row}"))).collect(),
            };
            window(frame, area, &format!(" {} ", text.title), look, lines);
        }
    }
}

fn window(frame: &mut Frame<'_>, area: Rect, title: &str, look: Look, lines: Vec<Line<'_>>) {
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(title.to_owned()).border_style(look.of(Color::Cyan));
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// A frame around so many columns and rows, as far as there is room.
fn middle(area: Rect, columns: usize, rows: usize) -> Rect {
    let frame = |inside: usize, all: u16| u16::try_from(inside + 2).unwrap_or(all).min(all);
    let (width, height) = (frame(columns, area.width), frame(rows, area.height));
    Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height }
}
