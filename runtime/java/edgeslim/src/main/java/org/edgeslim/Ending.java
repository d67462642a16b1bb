package org.edgeslim;

/** What ended a text. */
public enum Ending {
  /** As many tokens as were asked for. */
  LENGTH,
  /** An end token was drawn; it is not given. */
  TOKEN,
  /** The state is full. */
  ROOM,
  /** The listener said so. */
  LISTENER
}
