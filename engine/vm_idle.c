// Ends that come with time.
//
// A microVM has one timer, set to the earliest of these:
//
//   in any state   maximumDurationInSeconds after its start: TERMINATED
//   RUNNING        maxIdleDurationSeconds without traffic from outside: SUSPENDED,
//                  or TERMINATED, if suspendedDurationSeconds is 0
//   SUSPENDED      suspendedDurationSeconds after it became so: TERMINATED
//
// Which it is follows from the record and the time of the last traffic alone. So
// every transition sets the timer anew (vm_arm()), traffic does not touch it, and
// when it fires it looks again. What outlives thawd counts in wall time from the
// registry: a deadline that passed while thawd was down is due at its start. Idle
// time does not, and counts by the monotonic clock.
//
// The timer fires once a minute at least, because wall time may jump: a host
// that slept wakes with deadlines long past.
#include "vm_internal.h"

#include <stdio.h>

#define LOOK_MS 60000
#define MAX_S (1ll << 31) // 68 years

enum what { NOTHING, MAX_DURATION, IDLE, SUSPENDED_DURATION };
struct due {
	enum what what;
	uint64_t left_ms;
	uint32_t seconds; // as configured
};

static const json_t *policy(const struct reg_vm *r)
{
	return json_object_get(r->extra, "idlePolicy");
}

static uint32_t seconds_of(const json_t *idle, const char *key)
{
	json_int_t s = json_integer_value(json_object_get(idle, key));

	return (uint32_t)MAX(0ll, MIN(s, MAX_S));
}

static uint64_t span_ms(const struct eng_vms *m, uint32_t seconds)
{
	return (uint64_t)seconds * 1000 / MAX(1u, m->env.time_scale);
}

static void consider(struct due *d, enum what what, uint64_t from_ms,
		     uint64_t now_ms, uint32_t seconds, const struct eng_vms *m)
{
	uint64_t end = from_ms + span_ms(m, seconds);
	uint64_t left = end > now_ms ? end - now_ms : 0;

	if (d->what == NOTHING || left < d->left_ms)
		*d = (struct due){what, left, seconds};
}

static struct due next_due(const struct eng_vm *v)
{
	const struct reg_vm *r = v->r;
	const json_t *idle = policy(r);
	uint64_t wall = util_wall_ns() / 1000000;
	struct due d = {0};

	if (r->parked || r->state == VM_TERMINATING ||
	    r->state == VM_TERMINATED)
		return d;
	consider(&d, MAX_DURATION,
		 r->started_ms ? r->started_ms : r->created_ms, wall,
		 r->max_duration_s, v->m);
	if (idle && r->state == VM_RUNNING && v->op == OP_NONE)
		consider(&d, IDLE, v->traffic_ns / 1000000,
			 util_now_ns() / 1000000,
			 seconds_of(idle, "maxIdleDurationSeconds"), v->m);
	if (idle && r->state == VM_SUSPENDED && v->op == OP_NONE)
		consider(&d, SUSPENDED_DURATION, r->suspended_ms, wall,
			 seconds_of(idle, "suspendedDurationSeconds"), v->m);
	return d;
}

bool vm_ends_suspended(const struct reg_vm *r)
{
	const json_t *idle = policy(r);

	return idle && !seconds_of(idle, "suspendedDurationSeconds");
}

bool vm_wakes(const struct reg_vm *r)
{
	const json_t *idle = policy(r);

	return !idle ||
	       json_is_true(json_object_get(idle, "autoResumeEnabled"));
}

static void idle_over(struct eng_vm *v, uint32_t seconds)
{
	struct err e = ERR_INIT;
	char text[100];

	snprintf(text, sizeof(text), "no traffic for %u s", seconds);
	if (!vm_suspend(v, "idle", text, &e))
		return;
	log_warn("%s is idle, but stays: %s", v->r->id, e.msg);
	eng_vm_traffic(v->r); // it is tried again, as late
	vm_arm(v);
}

bool vm_due(struct eng_vm *v)
{
	struct due d = next_due(v);
	char text[120];

	if (d.what == NOTHING || d.left_ms)
		return false;
	switch (d.what) {
	case MAX_DURATION:
		eng_vm_terminate(v->m, v->r, "max-duration",
				 "its maximumDurationInSeconds is over");
		break;
	case IDLE:
		idle_over(v, d.seconds);
		break;
	default:
		snprintf(text, sizeof(text),
			 "it was suspended for suspendedDurationSeconds, %u s",
			 d.seconds);
		eng_vm_terminate(v->m, v->r, "suspended-duration", text);
		break;
	}
	return true;
}

void vm_timer_fired(void *ctx)
{
	struct eng_vm *v = ctx;

	if (v->r->parked) // its duration has not begun: it is not ready
		vm_fail_start(v, "it could not be parked in time");
	else if (!vm_due(v))
		vm_arm(v);
}

void vm_arm(struct eng_vm *v)
{
	struct due d = next_due(v);

	if (d.what != NOTHING)
		eng_timer_set(v->deadline, MIN(d.left_ms, (uint64_t)LOOK_MS));
	else if (!v->r->parked) // that has another deadline: vm_pool.c
		eng_timer_stop(v->deadline);
}
