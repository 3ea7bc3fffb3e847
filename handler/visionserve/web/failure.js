import { fileSize, t } from "./language.js";

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
  "save_as_jpeg",
]);
const TOO_LARGE = new Set([
  "image_too_large",
  "too_many_pixels",
  "too_much_work",
  "body_too_large",
  "request_too_slow",
]);
/** Faults of a format that a browser may read where the server does not. */
const FORMAT_FAULTS = new Set(["unsupported_format", "unsupported_pixels"]);
/** Whether the server runs on this device, so that it needs no network. */
const IS_HERE = /^(localhost|127\..*|\[::1\])$/.test(location.hostname);
const PASSING = new Set([429, 502, 503]);
/** Faults of a token: none was sent, or it is wrong. */
export const TOKEN_FAULTS = new Set(["unauthorized", "token_refused"]);

/** Why an image has no answer: the page's or the server's code, and the server's message. */
export class Failure extends Error {
  /** @param status HTTP status, if there was a response, and its Retry-After in seconds. */
  constructor(code, message = "", { status, retryAfter } = {}) {
    super(message);
    Object.assign(this, { code, status, retryAfter: retryAfter || 0 });
  }

  /**
   * What the same request has to wait for: a network (`offline`), a server that runs (`down`) or
   * one that has time (`busy`); undefined if waiting does not help.
   */
  get trouble() {
    if (this.code === "network") return navigator.onLine || IS_HERE ? "down" : "offline";
    if (this.status === 502 || this.code === "unavailable") return "down";
    return PASSING.has(this.status) && !this.shrinkable ? "busy" : undefined;
  }

  /** Whether the same image may get an answer once a person has removed the cause. */
  get retryable() {
    return !IMAGE_FAULTS.has(this.code);
  }

  /** Whether a smaller copy of the image may get an answer. */
  get shrinkable() {
    return TOO_LARGE.has(this.code);
  }

  /** Whether a JPEG of the image may get an answer, if the browser can make one. */
  get convertible() {
    return FORMAT_FAULTS.has(this.code);
  }

  get unauthorized() {
    return TOKEN_FAULTS.has(this.code);
  }

  /** Say it in the person's language. @param limit bytes of the largest image. */
  explain(limit) {
    const known = t(`error.${this.code}`, { limit: fileSize(limit) });
    return (
      known ??
      t(`error.http_${this.status}`) ??
      (this.message || t("error.unknown", { code: this.code }))
    );
  }
}
