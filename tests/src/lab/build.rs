//! Making a described lab real.
//!
//! ```text
//! namespaces -> sysctls -> veths (from our namespace) -> ip batches, NAT (each host's) -> relays
//!                                                                  -> all links running
//! ```

use super::{
    Host, Lab, LabError, LabSpec, Node, Overlay, Pod, PodKind, RelaySpec, big_tcp, namespace, nat,
    pods::{self, PodId},
    relay::Relay,
    spec,
    trunk::Trunk,
    tunnel::{Tunnel, Wrapping},
    uplinks, wiring,
};
use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long the kernel may take to report all links running.
const LINKS_LIMIT: Duration = Duration::from_secs(10);

impl Lab {
    /// The names and addresses, nothing built.
    pub(super) fn describe(spec: LabSpec) -> Self {
        let prefix = spec::prefix(&spec.name);
        let host = |name: &str, v4: Ipv4Addr, v6: Ipv6Addr| Host {
            namespace: format!("{prefix}{name}"),
            name: name.to_owned(),
            v4,
            v6: spec.ipv6.then_some(v6),
            neighbour_mac: None,
        };
        let nodes = (1..=spec.nodes)
            .map(|number| Node {
                host: host(&spec::node_name(number), spec::node_v4(number), spec::node_v6(number)),
                number,
                pods: pods::of_node(&spec, number)
                    .into_iter()
                    .map(|pod| Pod::describe(&spec, pod))
                    .collect(),
            })
            .collect();
        let bare = if spec.bare {
            vec![
                host("db", spec::db_v4(), spec::db_v6()),
                host("cache", spec::cache_v4(), spec::cache_v6()),
            ]
        } else {
            Vec::new()
        };
        Self {
            vpc: host("vpc", spec::sensor_gateway_v4(), spec::sensor_gateway_v6()),
            inet: host("inet", spec::inet_v4(), spec::inet_v6()),
            sensor: host("sensor", spec::sensor_v4(), spec::sensor_v6()),
            bare,
            nodes,
            relays: Vec::new(),
            spec,
            keep: false,
        }
    }

    pub(super) fn build(&mut self) -> Result<(), LabError> {
        let spec = &self.spec;
        let add: Vec<String> =
            self.hosts().map(|host| format!("netns add {}", host.namespace)).collect();
        namespace::ip_batch(None, &add)?;

        let forwarders: Vec<&str> = std::iter::once(&self.vpc)
            .chain(self.nodes.iter().map(|node| &node.host))
            .map(|host| host.name.as_str())
            .collect();
        namespace::in_parallel(self.hosts().collect(), |host| {
            prepare(spec, host, forwarders.contains(&host.name.as_str()))
        })?;
        namespace::ip_batch(None, &wiring::links(spec))?;

        let inet_gateways = (spec::inet_gateway_v4(), spec::inet_gateway_v6());
        let sensor_gateways = (spec::sensor_gateway_v4(), spec::sensor_gateway_v6());
        let (inet, sensor) =
            ((spec::inet_v4(), spec::inet_v6()), (spec::sensor_v4(), spec::sensor_v6()));
        let mut work: Vec<(&Host, Vec<String>, Option<u8>)> = vec![
            (&self.vpc, wiring::vpc(spec), None),
            (&self.inet, wiring::single(spec, inet, inet_gateways), None),
            (&self.sensor, wiring::single(spec, sensor, sensor_gateways), None),
        ];
        let addresses = [(spec::db_v4(), spec::db_v6()), (spec::cache_v4(), spec::cache_v6())];
        let gateways = spec::bare_gateways_v4().into_iter().zip(spec::bare_gateways_v6());
        for (host, (own, gateways)) in self.bare.iter().zip(addresses.into_iter().zip(gateways)) {
            work.push((host, wiring::single(spec, own, gateways), None));
        }
        for node in &self.nodes {
            work.push((&node.host, wiring::node(spec, node.number), Some(node.number)));
            for pod in &node.pods {
                work.push((&pod.host, wiring::pod(spec, pod.id), None));
            }
        }
        namespace::in_parallel(work, |(host, lines, node)| {
            if !spec.pod_offloads {
                self.turn_offloads_off(host)?;
            }
            namespace::ip_batch(Some(&host.namespace), &lines)?;
            if spec.big_tcp {
                big_tcp::over_ipv4(host, &self.veths_of(host))?;
            }
            let Some(number) = node else { return Ok(()) };
            // A veth would take the tap's UDP_SEGMENT uncut; a wire carries datagrams.
            host.exec(["ethtool", "-K", "eth0", "tx-udp-segmentation", "off"])?;
            nat::prepare_node(spec, number)
        })?;
        self.relays = self.relays().iter().map(Relay::start).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// What has to be moved by hand on a node, and at the router's end of its trunk.
    pub(super) fn relays_of(&self, node: &Node) -> Vec<RelaySpec> {
        let mut relays = Vec::new();
        let branches: Vec<PodId> =
            node.pods.iter().map(|pod| pod.id).filter(|pod| pod.kind == PodKind::Branch).collect();
        let trunk = |host: &Host, interface: String, device: fn(PodId) -> String| {
            RelaySpec::Trunk(Trunk {
                namespace: host.namespace.clone(),
                interface,
                vlans: branches.iter().map(|pod| (u16::from(pod.number), device(*pod))).collect(),
            })
        };
        if !branches.is_empty() {
            relays.push(trunk(&node.host, "eth1".to_owned(), PodId::branch_device));
            let device = uplinks::vpc_eni_device(node.number);
            relays.push(trunk(&self.vpc, device, PodId::router_device));
        }
        let wrapping = match self.spec.overlay {
            Overlay::Geneve => Some(Wrapping::Geneve),
            Overlay::Ipip => Some(Wrapping::Ipip),
            Overlay::Vxlan(_) => None,
        };
        if let Some(wrapping) = wrapping.filter(|_wrapping| self.spec.overlay_pods > 0) {
            let others = self.nodes.iter().filter(|other| other.number != node.number);
            relays.push(RelaySpec::Tunnel(Tunnel {
                namespace: node.namespace.clone(),
                device: self.spec.overlay.device().to_owned(),
                wrapping,
                local: node.v4,
                peers: others.map(|other| (other.number, other.v4)).collect(),
            }));
        }
        relays
    }

    /// For the interfaces that pods, bare instances and the internet host send through. Uplinks
    /// keep theirs: a tap's own UDP segmentation needs checksum offload there.
    fn turn_offloads_off(&self, host: &Host) -> Result<(), LabError> {
        let interfaces: Vec<&str> = match self.nodes.iter().find(|node| node.name == host.name) {
            Some(node) => node.pods.iter().map(|pod| pod.host_veth.as_str()).collect(),
            None if host.name == "vpc" || host.name == "sensor" => Vec::new(),
            None => vec!["eth0"],
        };
        interfaces.into_iter().try_for_each(|interface| no_offloads(host, interface))
    }

    /// The host's ends of veths.
    fn veths_of(&self, host: &Host) -> Vec<String> {
        let mut veths = vec!["eth0".to_owned()];
        if host.name == "vpc" {
            veths = vec!["inet".to_owned(), "sensor".to_owned()];
            veths.extend(self.bare.iter().map(|host| host.name.clone()));
            for node in &self.nodes {
                veths.push(node.name.clone());
                if self.spec.has_eni() {
                    veths.push(uplinks::vpc_eni_device(node.number));
                }
            }
        } else if let Some(node) = self.nodes.iter().find(|node| node.name == host.name) {
            veths.extend(node.pods.iter().map(|pod| pod.host_veth.clone()));
            if self.spec.has_eni() {
                veths.push("eth1".to_owned());
            }
        }
        veths
    }

    /// A link whose peer came up second gets its queue from a work item of the kernel's, up to
    /// a second later; what is sent before is lost.
    pub(super) fn wait_for_links(&self) -> Result<(), LabError> {
        for host in self.hosts() {
            let mut wanted = self.veths_of(host);
            if host.name == "vpc" {
                let branches = self.pods().filter(|pod| pod.id.kind == PodKind::Branch);
                wanted.extend(branches.map(|pod| pod.id.router_device()));
            } else if let Some(node) = self.nodes.iter().find(|node| node.name == host.name) {
                wanted.extend(node.pods.iter().filter_map(Pod::branch_device));
                if self.spec.overlay_pods > 0 {
                    wanted.extend(["cni0", self.spec.overlay.device()].map(str::to_owned));
                }
            }
            wait_for_interfaces(host, &wanted)?;
        }
        Ok(())
    }
}

/// A new namespace, before it has any link.
pub(super) fn prepare(spec: &LabSpec, host: &Host, forwards: bool) -> Result<(), LabError> {
    let sysctls = wiring::sysctls(spec, forwards);
    host.enter(|| write_sysctls(&sysctls))??;
    if spec.ipv6 { nat::silence_multicast_reports(&host.namespace) } else { Ok(()) }
}

pub(super) fn no_offloads(host: &Host, interface: &str) -> Result<(), LabError> {
    host.exec(["ethtool", "-K", interface, "tso", "off", "gso", "off", "gro", "off", "tx", "off"])
        .map(drop)
}

pub(super) fn wait_for_interfaces(host: &Host, wanted: &[String]) -> Result<(), LabError> {
    let started = Instant::now();
    loop {
        let running = host.running_interfaces()?;
        if wanted.iter().all(|name| running.contains(name)) {
            return Ok(());
        }
        if started.elapsed() > LINKS_LIMIT {
            return Err(LabError::Late {
                what: format!("all links of {} running", host.name),
                seconds: LINKS_LIMIT.as_secs(),
                detail: format!(": wanted {wanted:?}, running {running:?}"),
            });
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn write_sysctls(sysctls: &[(String, &str)]) -> Result<(), LabError> {
    for (key, value) in sysctls {
        let path = Path::new("/proc/sys/net").join(key);
        match fs::write(&path, value) {
            // A kernel without IPv6 has none of its settings; the addresses will say so.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.map_err(|error| LabError::file(path, error))?,
        }
    }
    Ok(())
}
