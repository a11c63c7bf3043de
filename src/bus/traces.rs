//! Which traces the VMs of an assignment belong to: a header for each, beside a message that means the same without. Pure.

use async_nats::HeaderMap;

use crate::model::VmUid;
use crate::trace::TraceParent;

/// The header; its values are those of [`fn@line`].
pub const TRACES: &str = "Orchard-Traces";
/// Read of one message.
const MOST: usize = 256;

/// What is told of one VM.
pub fn line(vm: VmUid, trace: TraceParent) -> String {
    format!("{} {trace}", vm.0)
}

/// What a message tells; what cannot be read is left out.
pub fn read(headers: Option<&HeaderMap>) -> Vec<(VmUid, TraceParent)> {
    let lines = headers.into_iter().flat_map(|headers| headers.get_all(TRACES)).take(MOST);
    lines
        .filter_map(|line| {
            let (vm, trace) = line.as_str().split_once(' ')?;
            Some((VmUid(vm.parse().ok()?), TraceParent::parse(trace)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_each_vm_is_read_and_nonsense_is_not() {
        let trace = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let (one, two) = (VmUid(uuid::Uuid::from_u128(1)), VmUid(uuid::Uuid::from_u128(2)));
        let mut headers = HeaderMap::new();
        for line in [line(one, trace), "x".into(), format!("{} x", two.0), line(two, trace)] {
            headers.append(TRACES, line.as_str());
        }
        assert_eq!(read(Some(&headers)), [(one, trace), (two, trace)]);
        assert_eq!(read(None), []);
    }
}
