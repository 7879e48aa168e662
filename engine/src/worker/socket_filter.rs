//! Which program stands in front of a worker's source.
//!
//! ```text
//! tap's own and the sensors' needs --refused--> tap's own --refused--> everything
//! ```
//!
//! User space decides again about every packet, so each is right; they differ in what the kernel
//! has to copy. A worker takes a sensor's new filter and puts the program in front between the
//! same two batches: from then on frames that only the new filter wants are captured, and what the
//! old program let into the ring meets the new filter.

use crate::bpf::Program;
use crate::classify::Classifier;
use crate::source::Source;

/// Puts it there. `filters` are those of all captures, if all are of the whole node and have one;
/// `whole` are the interfaces that are captured without election.
pub(super) fn put<S: Source>(
    source: &mut S,
    worker: usize,
    classifier: &Classifier,
    whole: &[u32],
    filters: Option<Vec<Program>>,
) {
    let sensors = filters.as_ref().map_or(0, Vec::len);
    let for_sensors = filters.and_then(|filters| classifier.filter_for(&filters));
    if let Some(program) = for_sensors
        && attach(source, worker, &program, sensors)
    {
        return;
    }
    if !attach(source, worker, &classifier.filter(whole), 0) {
        // What stands there now may keep back frames that are wanted by now.
        attach(source, worker, &Program::accept_all(), 0);
    }
}

fn attach<S: Source>(source: &mut S, worker: usize, program: &Program, sensors: usize) -> bool {
    let instructions = program.instructions().len();
    match source.set_filter(program.instructions()) {
        Ok(()) => {
            tracing::debug!(worker, instructions, sensor_filters = sensors, "new socket filter");
            true
        }
        // ENOMEM past `net.core.optmem_max`, most likely.
        Err(error) => {
            tracing::warn!(worker, instructions, %error, "the kernel refused a socket filter");
            false
        }
    }
}
