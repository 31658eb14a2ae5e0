// The endpoint of microVMs (docs/ENDPOINT.md): what engine/front asks of the
// engine, answered, and the tokens (docs/AUTH.md) that it is entered with. On
// the loop.
#ifndef THAW_ENG_ENDPOINT_H
#define THAW_ENG_ENDPOINT_H

#include "auth.h"
#include "config.h"
#include "front.h"
#include "vm.h"

struct eng_endpoint;

// Opens STATE/token.key and, where cfg names an address, listens there. The
// configuration and `vms` are borrowed.
int eng_endpoint_create(struct eng_endpoint **out, struct eng_loop *l,
			struct eng_vms *vms, const struct eng_config *cfg,
			struct err *e);
// Takes no more connections; what is open goes on.
void eng_endpoint_stop(struct eng_endpoint *ep);
// Before `vms`. NULL is fine.
void eng_endpoint_destroy(struct eng_endpoint *ep);
// A microVM has ended: its requests end too. `ep` may be NULL.
void eng_endpoint_vm_gone(struct eng_endpoint *ep, struct reg_vm *vm);

// What follows the UUID in a microVM's host name: the domain, and the port unless
// that is 443 or nothing is served. Borrowed, as the next two.
const char *eng_endpoint_suffix(const struct eng_endpoint *ep);
// ADDR:PORT as bound; NULL: not served.
const char *eng_endpoint_where(const struct eng_endpoint *ep);
// The certificate to trust; NULL: not ours, or not served.
const char *eng_endpoint_ca(const struct eng_endpoint *ep);
// All zero when it is not served.
void eng_endpoint_stats(const struct eng_endpoint *ep, struct front_stats *out);

// A token for a microVM's ports (TOKEN_APP) or its shell (no ports), good for so
// many minutes. -EINVAL: what is asked for cannot be; -EBUSY: it is parked or has
// ended.
int eng_endpoint_token(const struct eng_endpoint *ep, const struct reg_vm *vm,
		       enum token_kind kind, uint64_t minutes,
		       const struct token_ports *ports, unsigned nports,
		       char out[TOKEN_TEXT_MAX + 1], struct err *e);

#endif
