//! The thirty rows of spec/exactly-once.md, small, with real traffic and real NAT.

#[cfg(test)]
mod tests {
    use tests::exactly_once::{Load, Options, PATIENT, Size, Table, run, run_load};
    use tests::lab::can_run;

    fn measured(reference: bool, flags: &[&str]) -> Table {
        let directory = tempfile::tempdir().unwrap();
        let flags: Vec<&str> = PATIENT.iter().chain(flags).copied().collect();
        let options = Options {
            directory: directory.path(),
            size: Size::TEST,
            rows: &[],
            reference,
            flags: &flags,
        };
        run(options, &mut |_step| {}).unwrap()
    }

    /// Packets in one frame that a ring lost: 64 kB of segments on a path of 1500 bytes.
    const SEGMENTS: u64 = 46;

    fn assert_exact(table: &Table) {
        assert_eq!(table.rows.len(), 30);
        let mut missing = 0;
        for line in table.rows.iter().chain([&table.other]) {
            let mut counts = line.counts;
            // What was lost on a busy machine is accounted for, so it explains what is missing, as
            // far as it goes.
            missing += counts.missing;
            counts.once += counts.missing;
            counts.missing = 0;
            assert!(counts.is_exact(), "row {}:\n{table}", line.row);
        }
        let lost = table.ring_lost + table.queue_lost + table.network_lost;
        assert!(missing <= lost * SEGMENTS, "more is missing than was lost:\n{table}");
        assert!(table.own_datagrams > 0, "row 22 has something to leave out");
    }

    #[test]
    fn every_packet_of_the_thirty_rows_is_reported_once_and_the_references_faults_are_seen() {
        if !can_run("the thirty rows") {
            return;
        }
        let table = measured(true, &["--workers", "2"]);
        assert_exact(&table);
        // The same packets under the reference's rule: were the comparison blind, it would be
        // blind here too.
        let reference = |row: u8| table.row(row).unwrap().reference.unwrap();
        for row in [2, 3, 5, 7, 16, 17, 18, 22, 23, 26, 27, 30] {
            assert!(reference(row).doubled > 0, "row {row}:\n{table}");
        }
        for row in [8, 13, 15, 28, 29] {
            assert!(reference(row).missing > 0, "row {row}:\n{table}");
        }
        for row in [9, 10, 12] {
            assert!(reference(row).wrong_address > 0, "row {row}:\n{table}");
        }
        if table.reference_lost == 0 && table.untrusted.is_empty() {
            for row in [1, 4, 6] {
                assert!(reference(row).is_exact(), "row {row}:\n{table}");
            }
        }
    }

    #[test]
    fn one_worker_or_many_report_the_same() {
        if !can_run("the thirty rows with more workers") {
            return;
        }
        assert_exact(&measured(false, &["--workers", "5"]));
    }

    #[test]
    fn repeats_and_super_frames_in_bulk_are_neither_lost_nor_doubled() {
        if !can_run("rows 21 and 27 under load") {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            directory: directory.path(),
            size: Size::TEST,
            rows: &[],
            reference: false,
            flags: &PATIENT,
        };
        let table = run_load(options, Load::TEST, &mut |_step| {}).unwrap();
        for line in &table.load {
            let counts = line.counts;
            let faults =
                (counts.doubled, counts.wrong_checksum, counts.wrong_size, counts.unexpected);
            assert_eq!(faults, (0, 0, 0, 0), "{table}");
            let lost = table.ring_lost + table.queue_lost + table.network_lost;
            if lost + table.backlog_lost == 0 {
                assert!(counts.is_exact() && line.uncovered_bytes == 0, "{table}");
            }
        }
        assert!(table.load[1].sent_again > 0, "segments were lost and sent again: {table}");
    }
}
