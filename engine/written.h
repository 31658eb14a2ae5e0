// Which memory pages a microVM had written when it was suspended, kept in its own
// snapshot as a hint for its next resume (docs/STORE_FORMAT.md, "written").
//
// Most of them differ from the image's, and are its own anyhow. The others are as
// they were: a reference count that went up and down again, a lock that was taken
// and released. What a guest did so once it does again right after a resume.
#ifndef THAW_ENG_WRITTEN_H
#define THAW_ENG_WRITTEN_H

#include "pagecache.h"
#include "pagescan.h"

// Puts the list with the snapshot; of a very long one, its beginning.
int written_put(struct pgc_builder *b, const struct pagescan *written,
		struct err *e);
// The pages that were written and are as in the parent, ascending and each with
// PGC_WRITTEN; *n of them, at most 64 MiB. For the caller to free; NULL: none, or
// a list that is not right, which counts as none.
uint32_t *written_as_parent(const struct pgc_snap *sn, size_t *n);

#endif
