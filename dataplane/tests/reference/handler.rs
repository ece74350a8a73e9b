//! The requests of one connection, for the reference switch.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;

use dataplane::testing::features;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
};
use virtio_queue::QueueT;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::device::Ring;

const MAX_RINGS: usize = 16;

struct Region {
    gpa: u64,
    len: u64,
    user: u64,
    file: FileOffset,
}

/// The state of one port.
pub struct Device {
    pub memory: Option<GuestMemoryMmap>,
    pub rings: Vec<Ring>,
    pub acked: u64,
    /// Frames that wait for buffers, by queue pair.
    pub pending: BTreeMap<usize, VecDeque<Vec<u8>>>,
    features: u64,
    regions: Vec<Region>,
}

impl Device {
    pub fn new(features: u64) -> Self {
        Self {
            memory: None,
            rings: (0..MAX_RINGS).map(|_| Ring::new()).collect(),
            acked: 0,
            pending: BTreeMap::new(),
            features,
            regions: Vec::new(),
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn add(&mut self, region: &VhostUserMemoryRegion, file: File) {
        self.regions.push(Region {
            gpa: region.guest_phys_addr,
            len: region.memory_size,
            user: region.user_addr,
            file: FileOffset::new(file, region.mmap_offset),
        });
    }

    fn map(&mut self) -> Result<()> {
        self.regions.sort_by_key(|region| region.gpa);
        let range = |r: &Region| (GuestAddress(r.gpa), r.len as usize, Some(r.file.clone()));
        let ranges: Vec<_> = self.regions.iter().map(range).collect();
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges);
        self.memory = memory.ok();
        Ok(())
    }

    fn translate(&self, user: u64) -> Result<GuestAddress> {
        let inside = |r: &&Region| r.user <= user && user - r.user < r.len;
        let region = self.regions.iter().find(inside).ok_or(Error::InvalidParam)?;
        Ok(GuestAddress(region.gpa + (user - region.user)))
    }
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.features)
    }

    fn set_features(&mut self, acked: u64) -> Result<()> {
        if acked & !self.features != 0 {
            return Err(Error::InvalidParam);
        }
        self.acked = acked;
        for ring in &mut self.rings {
            ring.queue.set_event_idx(acked & features::EVENT_IDX != 0);
            ring.enabled = acked & features::PROTOCOL == 0;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.regions.clear();
        for (region, file) in regions.iter().zip(files) {
            self.add(region, file);
        }
        self.map().map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.queue.try_set_size(size).map_err(|_| Error::InvalidParam)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let [desc, used, avail] = [descriptor, used, available].map(|user| self.translate(user));
        let queue = &mut self.ring(index)?.queue;
        let refused = |_| Error::InvalidParam;
        queue.try_set_desc_table_address(desc?).map_err(refused)?;
        queue.try_set_used_ring_address(used?).map_err(refused)?;
        queue.try_set_avail_ring_address(avail?).map_err(refused)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?.set_base(base);
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.ring(index)?.stop();
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.kick = fd;
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.call = fd;
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _fd: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(MAX_RINGS as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidParam)
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidParam)
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidParam)
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.add(region, file);
        self.map().map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let gpa = region.guest_phys_addr;
        self.regions.retain(|known| known.gpa != gpa);
        self.map()
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidParam)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidParam)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidParam)
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidParam)
    }
}
