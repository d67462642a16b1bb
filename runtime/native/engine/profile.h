// How fast and how large a bundle is here: the profile object, the same keys as `edgeslim profile --json` prints.
#pragma once

#include <string>

#include "engine/session.h"

namespace edgeslim {

// Name of what products run on: a kernel variant, "function bodies", or "" where the bundle has no operators of ours.
const char* products_of(const Model& model);

Status profile(const char* folder, const edgeslim_model_options& model_options, const edgeslim_profile_options& options,
               std::string* json);

}  // namespace edgeslim
