// The peers that thaw-bench knows.
#include "../peer.h"

extern const struct peer peer_qemu, peer_qemu_stream, peer_firecracker_file,
    peer_firecracker_uffd, peer_cloud_hypervisor,
    peer_cloud_hypervisor_ondemand, peer_zeroboot;

const struct peer *const peers[] = {
    &peer_zeroboot,
    &peer_firecracker_file,
    &peer_firecracker_uffd,
    &peer_cloud_hypervisor,
    &peer_cloud_hypervisor_ondemand,
    &peer_qemu,
    &peer_qemu_stream,
    NULL,
};
