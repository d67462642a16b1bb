/** An expected fault, in one line that says where, what was found and what was expected. */
export class BundleError extends Error {
  name = "BundleError";
}
