//! The options by which commands print data in one form or another, and the printing itself. Every form says the same: JSON
//! and YAML hold the same data, and a table what of it people look for.

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::table::Table;
use super::{OutputError, line, lines, to_json, to_yaml};

/// How data are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table for people
    #[default]
    Table,
    /// The table with more columns, nothing of it shortened
    Wide,
    /// JSON for programs
    Json,
    /// The same data as YAML
    Yaml,
    /// Names, one a line
    Name,
}

/// The options of every command that prints data of things that have names.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// How to print: table, wide (more columns), json, yaml (the same data; later releases only add fields), name (one a line)
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    output: Format,
    /// Print the names only; the same as -o name
    #[arg(long, short, conflicts_with = "output")]
    quiet: bool,
}

/// The option of commands that print data of another kind.
#[derive(Clone, Copy, Debug, Args)]
pub struct DataArgs {
    /// How to print: table, wide (more of it), json, yaml (the same data; later releases only add fields)
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    output: DataFormat,
}

/// As [`Format`], of what has no names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum DataFormat {
    /// For people
    #[default]
    Table,
    /// More of it
    Wide,
    /// JSON for programs
    Json,
    /// The same data as YAML
    Yaml,
}

impl DataArgs {
    /// What was asked for; never [`Format::Name`].
    pub fn format(self) -> Format {
        match self.output {
            DataFormat::Table => Format::Table,
            DataFormat::Wide => Format::Wide,
            DataFormat::Json => Format::Json,
            DataFormat::Yaml => Format::Yaml,
        }
    }
}

impl DataArgs {
    /// Prints one thing; of a table, the wide form if the flag says so.
    ///
    /// # Errors
    /// As for [`line`].
    pub fn item<T: Serialize>(self, item: &T, table: impl FnOnce(&T, bool) -> Table) -> Result<(), OutputError> {
        match self.format() {
            Format::Table => table(item, false).print(),
            Format::Wide => table(item, true).whole().print(),
            format => format.data(item),
        }
    }
}

impl OutputArgs {
    /// What was asked for.
    pub fn format(self) -> Format {
        if self.quiet { Format::Name } else { self.output }
    }

    /// Prints one thing; of a table, the wide form if the flag says so.
    ///
    /// # Errors
    /// As for [`line`].
    pub fn item<T: Serialize>(
        self,
        item: &T,
        name: impl FnOnce(&T) -> String,
        table: impl FnOnce(&T, bool) -> Table,
    ) -> Result<(), OutputError> {
        match self.format() {
            Format::Table => table(item, false).print(),
            Format::Wide => table(item, true).whole().print(),
            Format::Name => line(&name(item)),
            format => format.data(item),
        }
    }

    /// Prints a list, likewise.
    ///
    /// # Errors
    /// As for [`line`].
    pub fn items<T: Serialize>(
        self,
        items: &[T],
        name: impl Fn(&T) -> String,
        table: impl FnOnce(&[T], bool) -> Table,
    ) -> Result<(), OutputError> {
        match self.format() {
            Format::Table => table(items, false).print(),
            Format::Wide => table(items, true).whole().print(),
            Format::Name => lines(items.iter().map(name)),
            format => format.data(items),
        }
    }

    /// Tells that something was done: people by `text`, on standard error, programs by the thing as it then is.
    ///
    /// # Errors
    /// As for [`line`].
    pub fn done<T: Serialize>(
        self,
        item: &T,
        name: impl FnOnce(&T) -> String,
        text: impl FnOnce() -> String,
    ) -> Result<(), OutputError> {
        match self.format() {
            Format::Table | Format::Wide => {
                eprintln!("{}", text());
                Ok(())
            }
            Format::Name => line(&name(item)),
            format => format.data(item),
        }
    }
}

impl Format {
    /// Whether a program reads it.
    pub fn is_data(self) -> bool {
        matches!(self, Format::Json | Format::Yaml)
    }

    /// Prints `value` as YAML if that was asked for, and else as JSON.
    ///
    /// # Errors
    /// As for [`line`].
    pub fn data<T: Serialize + ?Sized>(self, value: &T) -> Result<(), OutputError> {
        match self {
            Format::Yaml => line(&to_yaml(value)?),
            _ => line(&to_json(value)?),
        }
    }

    /// One of a stream of values: JSON on one line, or a YAML document.
    ///
    /// # Errors
    /// [`OutputError::Json`], [`OutputError::Yaml`].
    pub fn record<T: Serialize + ?Sized>(self, value: &T) -> Result<String, OutputError> {
        match self {
            Format::Yaml => Ok(format!("---\n{}", to_yaml(value)?)),
            _ => Ok(super::escaped(serde_json::to_string(value)?)),
        }
    }
}
