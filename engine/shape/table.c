// What every part of the table uses.
#include "table.h"

TEXT(String, ANY_LO, ANY_HI);
TEXT(NonBlankString, 1, 2048, .pattern = "[^\\s]+");
TEXT(Version, 1, 2048, .pattern = "[^\\s]+");
SHAPE(Boolean, SHAPE_BOOL, ANY_LO, ANY_HI);
NUMBER(Integer, ANY_LO, ANY_HI);
SHAPE(Timestamp, SHAPE_TIME, ANY_LO, ANY_HI);
SHAPE(Own, SHAPE_ANY, ANY_LO, ANY_HI);
