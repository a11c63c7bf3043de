//! What `orchard top` looks like: renders a [`State`] into a frame. Everything is told by words and marks, too, so that it can be
//! read without colours. `over.rs` has what lies over the panes. Pure.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table};

use super::over;
use super::state::{Link, Pane, State, object, vm_state};
use super::text::plain;
use crate::cli::list;
use crate::cli::output::Tone;
use crate::config::duration;
use crate::model::vm::{Vm, VmStatus};
use crate::model::worker::{WorkerState, WorkerView};
use crate::model::{Now, Timestamp, WorkerName};

/// The least that anything can be seen in.
const LEAST: (u16, u16) = (50, 14);
/// Cells of a bar.
const BAR: usize = 8;
/// From these parts of a hundred on a bar is told to be high, and very high.
const HIGH: (u64, u64) = (75, 90);
/// What stands before the row that is selected, in the pane that has the keys.
const MARK: &str = "> ";

/// How things are told apart where that is to be seen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Not where `NO_COLOR` is set.
    pub(super) colours: bool,
}

impl Look {
    pub(super) fn of(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    fn tone(self, tone: Option<Tone>) -> Style {
        match tone {
            Some(Tone::Good) => self.of(Color::Green),
            Some(Tone::Doubtful) => self.of(Color::Yellow),
            Some(Tone::Bad) => self.of(Color::Red),
            Some(Tone::Off) => self.of(Color::DarkGray),
            None => Style::new(),
        }
    }

    fn title(self, focused: bool) -> Style {
        if focused { self.of(Color::Cyan).add_modifier(Modifier::BOLD) } else { Style::new() }
    }
}

/// Renders all of it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State, look: Look) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!("{}x{} is too small: {}x{} will do", area.width, area.height, LEAST.0, LEAST.1);
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    let (workers, _) = state.totals();
    let lines = u16::try_from(workers).unwrap_or(u16::MAX).saturating_add(3);
    let heights = [
        Constraint::Length(1),
        Constraint::Length(lines.clamp(4, area.height / 3)),
        Constraint::Fill(1),
        Constraint::Length((area.height / 4).max(4)),
        Constraint::Length(1),
    ];
    let [top, workers, vms, feed, bottom] = Layout::vertical(heights).areas(area);
    header(frame, top, state, look);
    worker_pane(frame, workers, state, look);
    vm_pane(frame, vms, state, look);
    feed_pane(frame, feed, state, look);
    over::footer(frame, bottom, state, look);
    over::draw(frame, Rect { height: area.height - 2, y: 1, ..area }, state, look);
}

fn header(frame: &mut Frame<'_>, area: Rect, state: &State, look: Look) {
    let (text, style) = match &state.link {
        Link::Connecting => ("connecting".to_owned(), look.of(Color::Yellow)),
        Link::Live => ("live".to_owned(), look.of(Color::Green)),
        Link::Away(since, _) => {
            let age = duration::show(state.now.mono.saturating_sub(*since));
            (format!("reconnecting for {age}"), look.of(Color::Red).add_modifier(Modifier::BOLD))
        }
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let left = Line::from(vec![Span::styled("orchard top", bold), Span::raw(format!("  {}", state.who))]);
    frame.render_widget(left, area);
    // Over the address, if there is no room for both: whether all this is true matters more.
    let width = u16::try_from(text.chars().count() + 1).unwrap_or(area.width).min(area.width);
    let right = Rect { x: area.right() - width, width, ..area };
    frame.render_widget(Paragraph::new(text).alignment(Alignment::Right).style(style), right);
}

fn worker_pane(frame: &mut Frame<'_>, area: Rect, state: &State, look: Look) {
    let (workers, selected) = state.workers();
    let online = workers.iter().filter(|worker| worker.state == WorkerState::Online).count();
    let title = format!(" Workers {}, {online} online ", count(workers.len(), state.totals().0));
    let pane = Pane::Workers;
    let widths = [Constraint::Fill(1), Constraint::Length(18), Constraint::Length(4)].into_iter();
    let list = List {
        titles: &["Name", "State", " VMs", "CPU", "Memory", "Disk"],
        widths: widths.chain([Constraint::Length(bar_width()); 3]).collect(),
        pane,
        title,
        selected,
        empty: if state.link == Link::Connecting { "" } else { "no worker; see `orchard worker run --help`" },
    };
    list.draw(frame, area, state, look, &workers, |worker| worker_row(worker, look));
}

fn worker_row<'a>(view: &WorkerView, look: Look) -> Vec<Cell<'a>> {
    let load = view.load.unwrap_or_default();
    let used = |free: Option<u64>, all: Option<u64>| {
        let (free, all) = free.zip(all)?;
        all.saturating_sub(free).saturating_mul(1000).checked_div(all)
    };
    let state = match view.worker.scheduling_paused && view.worker.drain.is_none() {
        true => format!("{}, paused", list::state(view)),
        false => list::state(view),
    };
    let colour = match (view.state, view.connectable) {
        (WorkerState::Online, true) => Color::Green,
        (WorkerState::Online, false) | (WorkerState::Unseen | WorkerState::Unknown, _) => Color::Yellow,
        (WorkerState::Gone, _) => Color::Red,
    };
    vec![
        Cell::from(view.worker.info.name.to_string()),
        Cell::from(Span::styled(state, look.of(colour))),
        Cell::from(format!("{:>4}", view.vms)),
        bar(load.cpu_permille, look),
        bar(used(load.memory_available_mib, load.memory_mib), look),
        bar(used(load.disk_free_mib, load.disk_mib), look),
    ]
}

fn vm_pane(frame: &mut Frame<'_>, area: Rect, state: &State, look: Look) {
    let (vms, selected) = state.vms();
    let with = |status: VmStatus| vms.iter().filter(|vm| vm.status == status && !vm.is_off()).count();
    let (running, pending, failed) = (with(VmStatus::Running), with(VmStatus::Pending), with(VmStatus::Failed));
    let mut title = format!(" VMs {}, {running} running", count(vms.len(), state.totals().1));
    for (number, word) in [(pending, "pending"), (failed, "failed")] {
        if number > 0 {
            title.push_str(&format!(", {number} {word}"));
        }
    }
    title.push(' ');
    let list = List {
        titles: &["Name", "State", " Age", "Worker", "Message"],
        widths: vec![
            widest(vms.iter().map(|vm| vm.name.as_str()), 8, 24),
            Constraint::Length(9),
            Constraint::Length(4),
            widest(vms.iter().filter_map(|vm| vm.worker.as_ref()).map(WorkerName::as_str), 6, 18),
            Constraint::Fill(1),
        ],
        pane: Pane::Vms,
        title,
        selected,
        empty: if state.link == Link::Connecting { "" } else { "no VM; see `orchard create vm --help`" },
    };
    list.draw(frame, area, state, look, &vms, |vm| vm_row(vm, state.now, look));
}

fn vm_row<'a>(vm: &Vm, now: Now, look: Look) -> Vec<Cell<'a>> {
    let colour = match (vm.status, vm.ready) {
        (VmStatus::Failed, _) => Color::Red,
        (VmStatus::Running, true) => Color::Green,
        (VmStatus::Pending | VmStatus::Unknown, _) | (VmStatus::Running, false) => Color::Yellow,
    };
    let worker = vm.worker.as_ref().map_or("", WorkerName::as_str);
    vec![
        Cell::from(vm.name.to_string()),
        Cell::from(Span::styled(vm_state(vm), look.of(colour))),
        Cell::from(format!("{:>4}", age(vm.created_at, now.wall))),
        Cell::from(worker.to_owned()),
        Cell::from(plain(&vm.status_message)),
    ]
}

fn feed_pane(frame: &mut Frame<'_>, area: Rect, state: &State, look: Look) {
    let (events, selected) = state.events();
    let list = List {
        titles: &[],
        widths: vec![
            Constraint::Length(4),
            widest(events.iter().map(|event| object(event)), 8, 28),
            Constraint::Length(10),
            Constraint::Fill(1),
        ],
        pane: Pane::Feed,
        title: " Events ".to_owned(),
        selected,
        empty: "",
    };
    list.draw(frame, area, state, look, &events, |event| {
        let kind = event.kind.as_str();
        vec![
            Cell::from(format!("{:>4}", age(event.time, state.now.wall))),
            Cell::from(object(event)),
            Cell::from(Span::styled(kind, look.tone(Tone::of(kind)))),
            Cell::from(plain(&event.message)),
        ]
    });
}

/// A pane with rows, of which so many are rendered as there is room for.
struct List<'a> {
    titles: &'a [&'static str],
    widths: Vec<Constraint>,
    pane: Pane,
    title: String,
    selected: Option<usize>,
    empty: &'static str,
}

impl List<'_> {
    fn draw<'c, T>(
        self,
        frame: &mut Frame<'_>,
        area: Rect,
        state: &State,
        look: Look,
        items: &[T],
        row: impl Fn(&T) -> Vec<Cell<'c>>,
    ) {
        let focused = state.focus == self.pane;
        let block = Block::bordered().title(Span::styled(self.title, look.title(focused)));
        let block = block.border_style(if focused { look.of(Color::Cyan) } else { look.of(Color::DarkGray) });
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let titled = !self.titles.is_empty();
        if items.is_empty() {
            let text = if state.filter.is_empty() { self.empty } else { "nothing that the filter lets through" };
            let below = Rect { y: inner.y + u16::from(titled), height: inner.height - u16::from(titled), ..inner };
            frame.render_widget(Paragraph::new(format!("  {text}")), below);
        }
        let room = usize::from(inner.height).saturating_sub(usize::from(titled));
        // The selected row in the middle, except at both ends.
        let first = self.selected.unwrap_or(0).saturating_sub(room / 2).min(items.len().saturating_sub(room));
        let rows = items.iter().enumerate().skip(first).take(room).map(|(index, item)| {
            let chosen = focused && self.selected == Some(index);
            let style = if chosen { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
            let mark = Cell::from(if chosen { MARK } else { "" });
            Row::new(std::iter::once(mark).chain(row(item))).style(style)
        });
        let widths = std::iter::once(Constraint::Length(1)).chain(self.widths);
        let mut table = Table::new(rows, widths).column_spacing(1);
        if titled {
            let titles = std::iter::once("").chain(self.titles.iter().copied()).map(Cell::from);
            table = table.header(Row::new(titles).style(Style::new().add_modifier(Modifier::BOLD)));
        }
        frame.render_widget(table, inner);
    }
}

/// A column for these, within bounds.
fn widest(texts: impl Iterator<Item = impl AsRef<str>>, least: usize, most: usize) -> Constraint {
    let widest = texts.map(|text| text.as_ref().len()).max().unwrap_or(0);
    Constraint::Length(u16::try_from(widest.clamp(least, most)).unwrap_or(u16::MAX))
}

/// How many, and of how many when a filter holds some back.
fn count(shown: usize, all: usize) -> String {
    if shown == all { all.to_string() } else { format!("{shown} of {all}") }
}

/// How wide [`bar`] is: it, and ` 100%`.
fn bar_width() -> u16 {
    u16::try_from(BAR + 5).unwrap_or(u16::MAX)
}

/// So much of a whole, in thousandths, as a bar and a number.
fn bar<'a>(permille: Option<u64>, look: Look) -> Cell<'a> {
    let Some(permille) = permille.map(|n| n.min(1000)) else {
        return Cell::from(format!("{:>width$}", "-", width = BAR + 5));
    };
    let percent = permille / 10;
    let colour = match percent {
        percent if percent >= HIGH.1 => Color::Red,
        percent if percent >= HIGH.0 => Color::Yellow,
        _ => Color::Green,
    };
    // Whole cells are all that every font draws alike.
    let full = usize::try_from((permille * BAR as u64 + 500) / 1000).unwrap_or(0).min(BAR);
    Cell::from(Line::from(vec![
        Span::styled("█".repeat(full), look.of(colour)),
        Span::styled("░".repeat(BAR - full), look.of(Color::DarkGray)),
        Span::raw(format!("{percent:>4}%")),
    ]))
}

/// How long ago that was, in four characters for nearly three years.
fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = then.until(now).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}
