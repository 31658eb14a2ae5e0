// The capabilities that an application keeps by default.
//
// The set is what programs of containers are written for: they find out that
// mount(2) or sethostname(2) is refused and do without. It is no wall: root in a
// guest has the guest's disk and the files of its kernel all the same. The wall is
// the microVM.
#include <errno.h>
#include <sys/prctl.h>

#include <linux/capability.h>

#include "ag_caps.h"

#define C(x) (UINT64_C(1) << CAP_##x)
const uint64_t ag_caps_default =
    C(CHOWN) | C(DAC_OVERRIDE) | C(FOWNER) | C(FSETID) | C(KILL) | C(SETGID) |
    C(SETUID) | C(SETPCAP) | C(NET_BIND_SERVICE) | C(NET_RAW) | C(SYS_CHROOT) |
    C(MKNOD) | C(AUDIT_WRITE) | C(SETFCAP);
#undef C

int ag_caps_limit(void)
{
	// The kernel may know more of them than this program's headers; it ends
	// the list by EINVAL.
	for (unsigned long c = 0; c < 64; c++) {
		int has = prctl(PR_CAPBSET_READ, c, 0, 0, 0);

		if (has < 0)
			break;
		if (has && !(ag_caps_default >> c & 1) &&
		    prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0)
			return -errno;
	}
	return 0;
}
