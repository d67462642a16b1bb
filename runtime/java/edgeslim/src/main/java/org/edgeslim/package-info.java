/**
 * edgeslim's native runtime for Java and Kotlin: load a bundle, stream tokens from it, cancel, save and restore.
 *
 * <pre>{@code
 * try (Model model = Model.load(folder); Session session = model.open()) {
 *   session.generate(prompt, 64, Sampling.GREEDY, token -> { show(token); return true; });
 * }
 * }</pre>
 *
 * Every fault of the runtime is an {@link org.edgeslim.EdgeslimException} with a code. Calls on a closed object are
 * {@link java.lang.IllegalStateException}.
 */
package org.edgeslim;
