import { megabytes, t } from "./language.js";

/** Codes of failures that a retry with the same file cannot mend. */
const IMAGE_FAULTS = new Set([
  "empty_image",
  "empty_request",
  "unsupported_format",
  "unsupported_pixels",
  "undecodable",
  "corrupt_image",
  "truncated_image",
  "extreme_aspect_ratio",
  "image_too_large",
  "too_many_pixels",
  "too_much_work",
  "body_too_large",
  "original_missing",
]);
const TOO_LARGE = new Set([
  "image_too_large",
  "too_many_pixels",
  "too_much_work",
  "body_too_large",
  "request_too_slow",
]);
const PASSING = new Set([429, 502, 503]);

/** Why an image has no answer: the page's or the server's code, and the server's message. */
export class Failure extends Error {
  /** @param status HTTP status, if there was a response, and its Retry-After in seconds. */
  constructor(code, message = "", { status, retryAfter } = {}) {
    super(message);
    Object.assign(this, { code, status, retryAfter: retryAfter || 0 });
  }

  /** Whether the same request may well succeed in a moment. */
  get passing() {
    return this.code === "network" || PASSING.has(this.status);
  }

  /** Whether the same image may get an answer once a person has removed the cause. */
  get retryable() {
    return !IMAGE_FAULTS.has(this.code);
  }

  /** Whether the image itself is too large, so that a smaller copy may get an answer. */
  get oversized() {
    return TOO_LARGE.has(this.code) && IMAGE_FAULTS.has(this.code);
  }

  /** Whether a smaller copy of the image may get an answer. */
  get shrinkable() {
    return TOO_LARGE.has(this.code);
  }

  get unauthorized() {
    return this.code === "unauthorized";
  }

  /** Say it in the person's language. @param limit bytes of the largest image. */
  explain(limit) {
    const known = t(`error.${this.code}`, { limit: megabytes(limit) });
    return (
      known ??
      t(`error.http_${this.status}`) ??
      (this.message || t("error.unknown", { code: this.code }))
    );
  }
}
