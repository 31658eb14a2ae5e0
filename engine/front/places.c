// Who has a place at the endpoint, and who makes room.
//
// A connection is one of these:
//
//   stranger  it has shown no good token, or only for a microVM that is no more
//   busy      it has exchanges, a WebSocket for one; they were admitted
//   waiting   it was busy and is not any more. It waits for the microVM of the
//             exchange that ended last, until a request is admitted again
//
// Of strangers there are at most max_strangers, and the oldest makes room for a
// newcomer: whoever opens a thousand and says nothing pushes out their own, not
// those of clients that have a token. (Those that a microVM left behind may be
// more, until the next newcomer.)
//
// Whoever has a token could take all the other places with it, one request on
// each connection. So when they are all taken, the microVM that most connections
// wait for loses the one that has waited longest: a server may close between two
// requests at any time (RFC 9112 9.5). Half a head holds no place, nor does an
// answer that was given and that nobody reads: the rest of it goes too. Busy
// connections are never taken, and max_per_vm is how many places they hold for
// one microVM. If nobody waits the newcomer is closed.
//
// Fair is what is fair to microVMs: who has the tokens of many has the places of
// many.
#include "front_internal.h"

// --- load ------------------------------------------------------------------------

static struct vm_load **load_of(struct front *f, const void *vm)
{
	uint64_t h = (uint64_t)(uintptr_t)vm * 0x9e3779b97f4a7c15ull;
	struct vm_load **at = &f->load[h >> 56];

	while (*at && (*at)->vm != vm)
		at = &(*at)->next;
	return at;
}

static struct vm_load *load_make(struct front *f, void *vm)
{
	struct vm_load **at = load_of(f, vm), *l = *at;

	if (l)
		return l;
	l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	l->vm = vm;
	l->waiting.last = &l->waiting.first;
	*at = l;
	return l;
}

static void load_unless_needed(struct front *f, struct vm_load *l)
{
	if (l->n || l->waiting.n)
		return;
	*load_of(f, l->vm) = l->next;
	free(l);
}

void place_load_drop(struct front *f, void *vm)
{
	struct vm_load *l = *load_of(f, vm);

	l->n--;
	load_unless_needed(f, l);
}

// --- the lists -----------------------------------------------------------------------

static struct places *list_of(struct place *p)
{
	return p->load ? &p->load->waiting : &p->f->strangers;
}

// load NULL: a stranger.
static void enter(struct place *p, struct vm_load *load)
{
	struct places *list;

	p->load = load;
	list = list_of(p);
	p->next = NULL;
	p->link = list->last;
	*p->link = p;
	list->last = &p->next;
	list->n++;
	if (load)
		p->f->stats.waiting++;
}

static void leave(struct place *p)
{
	struct places *list = list_of(p);
	struct vm_load *load = p->load;

	if (!p->link)
		return;
	*p->link = p->next;
	if (p->next)
		p->next->link = p->link;
	else
		list->last = p->link;
	p->link = NULL;
	list->n--;
	p->load = NULL;
	if (load) {
		p->f->stats.waiting--;
		load_unless_needed(p->f, load);
	}
}

// --- a connection ----------------------------------------------------------------------

void place_init(struct place *p, struct front *f, struct conn *c)
{
	*p = (struct place){.f = f, .conn = c};
	enter(p, NULL);
}

void place_fini(struct place *p)
{
	leave(p);
}

bool place_take(struct place *p, void *vm)
{
	struct vm_load *l = load_make(p->f, vm);

	if (!l)
		return false;
	if (l->n >= p->f->lim.max_per_vm) {
		if (!p->busy) { // no stranger: its token was good
			leave(p);
			enter(p, l);
		}
		return false;
	}
	l->n++;
	p->busy++;
	leave(p);
	return true;
}

// The exchange still counts, so its microVM's load is there.
void place_done(struct place *p, void *vm)
{
	if (!--p->busy)
		enter(p, *load_of(p->f, vm));
}

// --- making room -----------------------------------------------------------------------

static struct place *longest_of_most(struct front *f)
{
	struct vm_load *most = NULL;

	for (size_t i = 0; i < FRONT_BUCKETS; i++) {
		for (struct vm_load *l = f->load[i]; l; l = l->next) {
			if (!most || l->waiting.n > most->waiting.n)
				most = l;
		}
	}
	return most ? most->waiting.first : NULL;
}

bool places_make_room(struct front *f)
{
	struct place *p;

	while (f->strangers.n >= f->lim.max_strangers)
		conn_kill(f->strangers.first->conn);
	if (f->stats.conns < f->lim.max_conns)
		return true;
	p = longest_of_most(f);
	if (!p)
		return false;
	conn_kill(p->conn);
	return true;
}

// Not closed: some have just been told, and the answer is still on its way.
void places_vm_gone(struct front *f, void *vm)
{
	struct vm_load *l = *load_of(f, vm);
	struct place *p, *next;

	for (p = l ? l->waiting.first : NULL; p; p = next) {
		next = p->next;
		leave(p); // the last one ends the load
		enter(p, NULL);
	}
}
