// Test hook of the capture: which scan of written pages is used.
#ifndef THAW_ENG_CAPTURE_H
#define THAW_ENG_CAPTURE_H

#include "pagescan.h"

// For every later capture of this process; the default is PAGESCAN_BEST.
void eng_capture_scan_how(enum pagescan_how how);

#endif
