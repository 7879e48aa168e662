//! Pods attached and detached without pause: what a tap misses of them, and what it keeps.

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use std::time::Duration;
    use tests::churn::{self, Made, Plan};
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

    fn churn(pods: u64, seconds: u64, made: Made, more: &[&str]) {
        let plan = Plan {
            pods: usize::try_from(pods).unwrap(),
            over: Duration::from_secs(seconds),
            slots: 24,
            every: Duration::from_millis(5),
            life: (Duration::from_millis(200), Duration::from_millis(1000)),
            made,
        };
        let directory = tempfile::tempdir().unwrap();
        let spec = LabSpec::unique().nodes(1).pods(1);
        // Link-local addresses and routes come and go with each link.
        let spec = if made == Made::OnHost { spec.ipv6() } else { spec };
        let lab = Lab::up(spec).unwrap();
        let file = directory.path().join("sensor.pcapng");
        let sensor = Sensor::start(lab.sensor(), file.clone(), &[]).unwrap();
        let flags = [&TAP_FLAGS[..], &["--workers", "2", "--ring-memory", "64M"], more].concat();
        let tap = Tap::start(lab.node(1), lab.sensor(), &flags).unwrap();

        let kernel_before = churn::kernel_drops().unwrap();
        let (truth, samples) = churn::watched(tap.id(), || churn::run(&lab, &plan)).unwrap();
        let truth = truth.unwrap();
        let kernel = churn::kernel_drops().unwrap() - kernel_before;
        let network = |name: &str| tap.metric(&format!("podtap_network_{name}_total"), "").unwrap();
        let (views, dumps, overruns) = (network("views"), network("dumps"), network("overruns"));
        let account = tap.stop().unwrap();
        let summary = sensor.stop().unwrap();
        let ring_lost = settle_accounts(std::slice::from_ref(&account), &summary).unwrap();
        let lost = summary.pointer("/totals/lost_packets").and_then(Value::as_u64).unwrap();
        let verdict = truth.judge(&file, GRACE).unwrap();
        if let Some(to) = std::env::var_os("PODTAP_CHURN_KEEP") {
            std::fs::copy(&file, to).unwrap();
        }
        // The table that finds copies is touched page by page in the first tenth, or four seconds.
        let warm_up = (samples.len() / 10).max(8);
        let (least, most) = churn::spread(&samples, warm_up).expect("the run is longer");
        let longest = truth.lives.iter().map(|life| life.attach).max().unwrap();
        println!(
            "{}",
            json!({
                "pods": plan.pods, "seconds": truth.took.as_secs_f64(),
                "attach_ms_most": longest.as_millis(), "verdict": verdict.to_json(),
                "views": views, "dumps": dumps, "overruns": overruns,
                "kernel_drops": kernel,
                "ring_lost": ring_lost, "unsent": account["sensors"][0]["dropped"], "lost_on_the_way": lost,
                "dropped": account["dropped"], "samples": samples.len(),
                "descriptors": [least.descriptors, most.descriptors],
                "threads": [least.threads, most.threads],
                "resident_kib": [least.resident_kib, most.resident_kib],
                "ring_kib": [least.ring_kib, most.ring_kib],
                "cpu_seconds": (most.ticks - least.ticks) / 100,
            })
        );
        assert_eq!(verdict.pods, plan.pods, "every pod lived, and sent, to its end");
        // A worker, or the sensor, may be without a core for longer than its buffers last, and says
        // so. What the tap took it must send: a sender that waits costs nothing.
        let counted = ring_lost + lost;
        let unsent = account.pointer("/sensors/0/dropped").unwrap().as_object().unwrap();
        assert!(unsent.values().all(|count| count == 0), "{unsent:?}");
        assert!(verdict.late.missing <= counted, "{} of {counted}", verdict.late.missing);
        assert!(verdict.late.gone <= kernel, "neither delivered nor seen: {verdict:?}");
        assert_eq!(verdict.late.doubled, 0, "{verdict:?}");
        assert!(dumps * 10.0 < f64::from(u32::try_from(pods).unwrap()), "{dumps} dumps");
        assert_eq!(least.descriptors, most.descriptors);
        assert_eq!((least.threads, least.ring_kib), (most.threads, most.ring_kib));
        assert!(most.resident_kib - least.resident_kib < RESIDENT_KIB, "{least:?} {most:?}");
    }

    #[test]
    fn no_packet_of_a_pod_is_missed_after_its_first_tenth_of_a_second_and_the_tap_stays_as_it_is() {
        if can_run("pods that come and go") {
            let pods = environment("PODTAP_CHURN_PODS", PODS);
            let seconds = environment("PODTAP_CHURN_SECONDS", SECONDS);
            churn(pods, seconds, Made::InPod, &[]);
        }
    }

    /// Nothing is tapped there before it is known, unlike with any-eth.
    #[test]
    fn the_same_holds_where_pods_are_found_by_name_and_made_on_a_host_with_ipv6() {
        if can_run("pods that come and go") {
            churn(150, 8, Made::OnHost, &["--interface", "eni*,eth0"]);
        }
    }
}
