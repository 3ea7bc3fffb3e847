import { megabytes, t } from "./language.js";

/** An image that has these can only be replaced by another one. */
const OF_THE_IMAGE = new Set([
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

/** Why an image has no answer: a code of the page's or the server's, and the server's words. */
export class Failure extends Error {
  /** @param status of the HTTP response, and `retryAfter`, its wish in seconds, where it came. */
  constructor(code, message = "", { status, retryAfter } = {}) {
    super(message);
    Object.assign(this, { code, status, retryAfter: retryAfter || 0 });
  }

  /** Whether the same request may well succeed in a moment. */
  get passing() {
    return this.code === "network" || PASSING.has(this.status);
  }

  /** Whether the same image may get an answer, once a person has seen to the cause. */
  get retryable() {
    return !OF_THE_IMAGE.has(this.code);
  }

  /** Whether a smaller copy of the image would do. */
  get shrinkable() {
    return TOO_LARGE.has(this.code);
  }

  get unauthorized() {
    return this.code === "unauthorized";
  }

  /** In the person's words. @param limit bytes of the largest image. */
  explain(limit) {
    const known = t(`error.${this.code}`, { limit: megabytes(limit) });
    return (
      known ??
      t(`error.http_${this.status}`) ??
      (this.message || t("error.unknown", { code: this.code }))
    );
  }
}
