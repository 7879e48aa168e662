//! Pods attached and detached without pause: what a tap misses of them, and what it keeps.

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use std::time::Duration;
    use tests::churn::{self, Plan};
    use tests::lab::{Lab, LabSpec, can_run};
    use tests::scenario::TAP_FLAGS;
    use tests::tap::{Sensor, Tap, settle_accounts};

    /// Unless `PODTAP_CHURN_PODS` and `PODTAP_CHURN_SECONDS` say more (10,000 in 600).
    const PODS: u64 = 300;
    const SECONDS: u64 = 15;
    /// What is promised: a pod is missed for no longer after its attach.
    const GRACE: Duration = Duration::from_millis(100);
    /// More than the allocator's noise; a leak of a kilobyte for each pod would be more.
    const RESIDENT_KIB: u64 = 4 << 10;

    fn environment(name: &str, otherwise: u64) -> u64 {
        std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
    }

    #[test]
    fn no_packet_of_a_pod_is_missed_after_its_first_tenth_of_a_second_and_the_tap_stays_as_it_is() {
        if !can_run("pods that come and go") {
            return;
        }
        let seconds = environment("PODTAP_CHURN_SECONDS", SECONDS);
        let plan = Plan {
            pods: usize::try_from(environment("PODTAP_CHURN_PODS", PODS)).unwrap(),
            over: Duration::from_secs(seconds),
            slots: 24,
            every: Duration::from_millis(5),
            life: (Duration::from_millis(200), Duration::from_millis(1000)),
        };
        let directory = tempfile::tempdir().unwrap();
        let lab = Lab::up(LabSpec::unique().nodes(1).pods(1)).unwrap();
        let file = directory.path().join("sensor.pcapng");
        let sensor = Sensor::start(lab.sensor(), file.clone(), &[]).unwrap();
        let flags = [&TAP_FLAGS[..], &["--workers", "2", "--ring-memory", "64M"]].concat();
        let tap = Tap::start(lab.node(1), lab.sensor(), &flags).unwrap();

        let (truth, samples) = churn::watched(tap.id(), || churn::run(&lab, &plan)).unwrap();
        let truth = truth.unwrap();
        let network = |name: &str| tap.metric(&format!("podtap_network_{name}_total"), "");
        let network = json!({
            "views": network("views"), "dumps": network("dumps"), "overruns": network("overruns"),
        });
        let account = tap.stop().unwrap();
        let summary = sensor.stop().unwrap();
        let ring_lost = settle_accounts(std::slice::from_ref(&account), &summary).unwrap();
        let lost = summary.pointer("/totals/lost_packets").and_then(Value::as_u64).unwrap();
        let verdict = truth.judge(&file, GRACE).unwrap();

        // The table that finds copies is touched page by page in the first tenth, or four seconds.
        let warm_up = (samples.len() / 10).max(8);
        let (least, most) = churn::spread(&samples, warm_up).expect("the run is longer");
        let longest = truth.lives.iter().map(|life| life.attach).max().unwrap();
        println!(
            "{}",
            json!({
                "pods": plan.pods, "seconds": truth.took.as_secs_f64(),
                "attach_ms_most": longest.as_millis(), "verdict": verdict.to_json(),
                "network": network, "ring_lost": ring_lost, "lost_on_the_way": lost,
                "dropped": account["dropped"], "samples": samples.len(),
                "descriptors": [least.descriptors, most.descriptors],
                "threads": [least.threads, most.threads],
                "resident_kib": [least.resident_kib, most.resident_kib],
                "ring_kib": [least.ring_kib, most.ring_kib],
                "cpu_seconds": (most.ticks - least.ticks) / 100,
            })
        );
        assert_eq!(verdict.pods, plan.pods, "every pod lived, and sent, to its end");
        assert_eq!(
            (ring_lost, lost),
            (0, 0),
            "nothing was lost that would explain what is missing"
        );
        assert_eq!(verdict.late.missing, 0, "{verdict:?}");
        assert_eq!(verdict.late.gone, 0, "sent, and neither delivered nor seen: {verdict:?}");
        assert_eq!(verdict.late.doubled, 0, "{verdict:?}");
        assert_eq!(least.descriptors, most.descriptors);
        assert_eq!((least.threads, least.ring_kib), (most.threads, most.ring_kib));
        assert!(most.resident_kib - least.resident_kib < RESIDENT_KIB, "{least:?} {most:?}");
    }
}
