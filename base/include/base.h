// The one header of the bottom room; every other room may include it.
#ifndef THAW_BASE_H
#define THAW_BASE_H

#include "addr.h"
#include "err.h"
#include "log.h"
#include "util.h"
#include "wire.h"

#endif
