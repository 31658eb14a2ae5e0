// The agent's protocol, spoken over vsock with thawd and, end to end through
// it, with `thaw exec`. docs/AGENT_PROTOCOL.md is its specification.
//
// One stream carries one conversation. The host connects to AGENT_PORT and
// sends one opening frame; what follows depends on it. Frames are
// [type u8][0 u8][0 u16][len u32] little-endian, then len bytes. Both sides
// treat the other as hostile: unknown types, non-zero reserved bytes and longer
// frames end the conversation.
#ifndef THAW_AGENT_PROTO_H
#define THAW_AGENT_PROTO_H

#define AGENT_PORT 29800u
// TCP, at 169.254.169.254 in the guest: the metadata service, which is found at
// port 80.
#define AGENT_IMDS_PORT 29801u
#define AGENT_FRAME_HEAD 8u
#define AGENT_FRAME_MAX (256u * 1024u)

enum agent_frame {
	// Openings. "-> X" is what the agent answers.
	AGENT_START = 1, // app spec (below) -> OK, once; or ERROR
	AGENT_FREEZE,	 // flags u32 (AGENT_FREEZE_*) -> OK when the
			 // application's cgroup is frozen; agent closes this
			 // stream
	AGENT_THAW,	 // entropy 64, wall_ns u64, machine_id 16, hostname str
			 // -> OK after reseed, clock, identity, un-freeze
	AGENT_UNFREEZE,	 // a failed capture: go on unchanged -> OK
	AGENT_EXEC,	 // exec spec (below) -> STDOUT/STDERR..., EXIT
	AGENT_CONNECT,	 // port u16 -> OK, then raw bytes both ways; or ERROR
	AGENT_LOG,	 // -> LOGDATA... for ever (one reader; newest wins)
	AGENT_PROBE,	 // port u16 (0: none) -> PROBED
	AGENT_POWEROFF,	 // timeout_ms u32: TERM, wait, KILL, sync -> OK, off
	AGENT_RENEW,	 // as THAW, but the application stays frozen -> OK
	AGENT_ROLE,	 // role spec (below) -> OK; since version 2

	// Answers and stream frames.
	AGENT_OK = 32,
	AGENT_ERROR,  // code u32 (errno), text
	AGENT_STDIN,  // host to agent; empty: end of input
	AGENT_STDOUT, // agent to host; empty: end
	AGENT_STDERR,
	AGENT_RESIZE,  // rows u16, cols u16; host to agent, PTY only
	AGENT_SIGNAL,  // signo u32; host to agent
	AGENT_EXIT,    // code u32 (0..255, 128+n for signal n)
	AGENT_LOGDATA, // stream u8 (1 stdout, 2 stderr, 3 agent), bytes
	AGENT_PROBED,  // listening u8, app_running u8, app_exit u32,
		       // app_cpu_us u64, uptime_ms u64
};

// Strings are [len u32][bytes], without NUL inside; lists are [count u32] and
// strings.
// App spec:  flags u32 (AGENT_START_ALL_CAPS), argv list, env list ("K=V"), user
//            str ("", name or uid[:gid]), cwd str ("" is /), hostname str
// Exec spec: flags u32 (AGENT_EXEC_PTY), rows u16, cols u16, argv list,
//            env list (added to the application's), user str, cwd str
// Role spec: the microVM's id str, region str, access key id str, secret access
//            key str, session token str, expires u64 (s since 1970; 0: does not)
#define AGENT_START_ALL_CAPS 1u // root in it may all that root may
#define AGENT_EXEC_PTY 1u
#define AGENT_FREEZE_SYNC 1u	// write the disk's caches back
#define AGENT_FREEZE_COMPACT 2u // make memory and disk small, see the document

#endif
