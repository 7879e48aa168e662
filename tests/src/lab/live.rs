//! What changes while the lab is up: pods come and go, ENIs are attached and detached.
//!
//! ```text
//! add_pod:    namespace -> veth -> the pod's, the node's and the router's side -> running
//! remove_pod: the router's side -> rules -> the namespace, and with it the veth
//! ```

use super::{
    Lab, LabError, Pod, PodKind, big_tcp, build, namespace,
    pods::PodId,
    uplinks,
    wiring::{self, pod_link},
};

impl Lab {
    /// A new pod on a node, wired as those that were there from the start; its number must be
    /// free. Taking the lab down removes it too, but [`Self::pods`] does not list it.
    ///
    /// # Errors
    ///
    /// When the number is taken, the node has no secondary ENI for it, or a command fails. Pods
    /// with branch ENIs cannot be added: their relay knows those of the start.
    pub fn add_pod(&self, node: usize, kind: PodKind, number: u8) -> Result<Pod, LabError> {
        let node = self.node(node);
        let refused = match kind {
            PodKind::Branch => Some("a branch ENI cannot be added to a lab that is up"),
            PodKind::Eni if !self.spec.has_eni() => Some("the lab has no secondary ENIs"),
            PodKind::Overlay if self.spec.overlay_pods == 0 => Some("the lab has no overlay"),
            _ if !(1..=150).contains(&number) => Some("pods are numbered from 1 to 150"),
            _ => None,
        };
        if let Some(why) = refused {
            return Err(LabError::Invalid(why.to_owned()));
        }
        let id = PodId { kind, node: node.number, number };
        let pod = Pod::describe(&self.spec, id);
        namespace::ip_batch(None, &[format!("netns add {}", pod.namespace)])?;
        let built = self.wire(&pod);
        if built.is_err() {
            // The first error is the one to report.
            let _ = self.remove_pod(&pod);
        }
        built.map(|()| pod)
    }

    fn wire(&self, pod: &Pod) -> Result<(), LabError> {
        let (spec, node) = (&self.spec, &self.node(usize::from(pod.id.node)).host);
        build::prepare(spec, pod, false)?;
        namespace::ip_batch(None, &[pod_link(spec, pod.id)])?;
        if !spec.pod_offloads {
            build::no_offloads(pod, "eth0")?;
            build::no_offloads(node, &pod.host_veth)?;
        }
        namespace::ip_batch(Some(&pod.namespace), &wiring::pod(spec, pod.id))?;
        namespace::ip_batch(Some(&node.namespace), &wiring::node_pod(spec, pod.id))?;
        namespace::ip_batch(Some(&self.vpc.namespace), &wiring::vpc_pod(spec, pod.id))?;
        if spec.big_tcp {
            big_tcp::over_ipv4(pod, &["eth0".to_owned()])?;
            big_tcp::over_ipv4(node, std::slice::from_ref(&pod.host_veth))?;
        }
        build::wait_for_interfaces(pod, &["eth0".to_owned()])?;
        build::wait_for_interfaces(node, std::slice::from_ref(&pod.host_veth))
    }

    /// Ends a pod: the processes in it, its namespace, its veth and what led to it.
    ///
    /// # Errors
    ///
    /// When a command fails.
    pub fn remove_pod(&self, pod: &Pod) -> Result<(), LabError> {
        let spec = &self.spec;
        let node = &self.node(usize::from(pod.id.node)).host;
        // Those that are not there are no error: a pod that came half way has not all of it.
        let quietly = |host: &super::Host, lines: Vec<String>| {
            lines.into_iter().for_each(|line| {
                let _ = namespace::ip_batch(Some(&host.namespace), &[line]);
            });
        };
        if matches!(pod.id.kind, PodKind::Plain | PodKind::Eni) {
            let routes = wiring::vpc_pod(spec, pod.id);
            quietly(&self.vpc, routes.iter().map(|line| line.replacen("add", "del", 1)).collect());
            if spec.has_eni() {
                quietly(node, uplinks::remove_pod_rules(spec, pod.id));
            }
        }
        // The node's end goes first: seen from the node, a veth's namespace may live on for long.
        quietly(node, vec![format!("link delete {}", pod.host_veth)]);
        namespace::remove(std::slice::from_ref(&pod.namespace))
    }

    /// Takes a node's secondary ENI away, as a detached one is: the interface is gone. Pods behind
    /// it have to be removed first.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn detach_eni(&self, node: usize) -> Result<(), LabError> {
        let node = self.node(node);
        let mut lines = vec!["link delete eth1".to_owned()];
        lines.push("rule del fwmark 0x80/0x80 lookup main priority 1024".to_owned());
        namespace::ip_batch(Some(&node.namespace), &lines)
    }

    /// Attaches it (again): a new interface, with the wiring it has in a lab with
    /// [`super::LabSpec::eni_pods`].
    ///
    /// # Errors
    ///
    /// When it is attached, or the lab was not made for it.
    pub fn attach_eni(&self, node: usize) -> Result<(), LabError> {
        let spec = &self.spec;
        if !spec.has_eni() {
            return Err(LabError::Invalid("the lab has no secondary ENIs".to_owned()));
        }
        let node = self.node(node);
        namespace::ip_batch(None, &[uplinks::eni_link(spec, node.number)])?;
        namespace::ip_batch(Some(&self.vpc.namespace), &uplinks::vpc_eni(spec, node.number))?;
        namespace::ip_batch(Some(&node.namespace), &uplinks::node_eni(spec, node.number))?;
        let routes: Vec<String> = node
            .pods
            .iter()
            .filter(|pod| pod.id.kind == PodKind::Eni)
            .flat_map(|pod| wiring::vpc_pod(spec, pod.id))
            .collect();
        namespace::ip_batch(Some(&self.vpc.namespace), &routes)?;
        build::wait_for_interfaces(&node.host, &["eth1".to_owned()])?;
        build::wait_for_interfaces(&self.vpc, &[uplinks::vpc_eni_device(node.number)])
    }

    /// Makes all uplinks (nodes and router) show what a wire carries: what is sent is cut and
    /// has its checksums, as behind a NIC; what arrives is put together again (GRO).
    ///
    /// # Errors
    ///
    /// When `ethtool` refuses.
    pub fn uplinks_like_wires(&self) -> Result<(), LabError> {
        let features = ["tso", "off", "gso", "off", "tx", "off", "gro", "on"];
        for node in &self.nodes {
            let mut ends = vec![(&node.host, "eth0".to_owned()), (&self.vpc, node.name.clone())];
            if self.spec.has_eni() {
                ends.push((&node.host, "eth1".to_owned()));
                ends.push((&self.vpc, uplinks::vpc_eni_device(node.number)));
            }
            for (host, interface) in ends {
                host.exec(["ethtool", "-K", &interface].into_iter().chain(features))?;
            }
        }

        Ok(())
    }
}
