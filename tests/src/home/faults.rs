//! What can be done to a home. Each is done when the call returns; none waits for what the mesh
//! makes of it.

use super::Home;
use crate::lab::Port;
use rustix::process::Signal;
use std::process::ExitStatus;

impl Home {
    /// Cuts a host's cable: nothing gets through, nobody is told. More of the kind in
    /// [`Home::network`].
    pub fn cut(&self, port: impl Into<Port>) {
        self.network().cut(port);
    }

    /// Mends it.
    pub fn mend(&self, port: impl Into<Port>) {
        self.network().mend(port);
    }

    /// Pulls the plug of a host, which it notices.
    pub fn unplug(&self, port: impl Into<Port>) {
        self.network().unplug(port);
    }

    /// Plugs it in again.
    pub fn plug(&self, port: impl Into<Port>) {
        self.network().plug(port);
    }

    /// Hosts talk within their group only.
    pub fn partition(&self, groups: &[&[usize]]) {
        self.network().partition(groups);
    }

    /// Ends the partition.
    pub fn heal(&self) {
        self.network().heal();
    }

    /// Stops the processes of a host: the agent and what it runs. (An engine double belongs to
    /// the test and goes on.)
    pub fn freeze(&self, host: usize) {
        // First the one that counts; the rest takes its time to be found.
        self.agent(host).signal(Signal::STOP);
        if let Some(lab) = &self.lab {
            lab.freeze(host);
        }
    }

    /// Lets them go on.
    pub fn thaw(&self, host: usize) {
        if let Some(lab) = &self.lab {
            lab.thaw(host);
        }
        self.agent(host).signal(Signal::CONT);
    }

    /// Kills a host's agent.
    pub fn kill(&self, host: usize) {
        self.agent(host).signal(Signal::KILL);
    }

    /// Asks a host's agent to leave, as a shutdown does.
    pub fn leave(&self, host: usize) {
        self.agent(host).signal(Signal::TERM);
    }

    /// Waits until the agent that was killed or asked to leave has ended.
    pub async fn ended(&mut self, host: usize) -> ExitStatus {
        self.cluster.agents[host].ended().await
    }

    /// Starts the agent of a host again after it was killed or asked to leave, and waits until
    /// its local API answers.
    pub async fn restart(&mut self, host: usize) {
        if self.agent(host).runs() {
            self.ended(host).await;
        }
        self.cluster.agents[host].start().await;
    }
}
