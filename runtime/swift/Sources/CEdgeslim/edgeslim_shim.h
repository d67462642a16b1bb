// The C interface as it lies in the checkout: there is one header.
#include "../../../native/include/edgeslim.h"
