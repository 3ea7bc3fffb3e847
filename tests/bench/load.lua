-- The script for wrk: it sends the images in turn, each as a raw body or as a file in a form.
-- The arguments after `--` are the name of the form field, or `-` for a raw body, and the images.
local requests, turn = {}, 0

local function form(name, body)
   return '--boundary\r\nContent-Disposition: form-data; name="' .. name
      .. '"; filename="image.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' .. body
      .. "\r\n--boundary--\r\n"
end

function init(args)
   local name = args[1]
   local raw = name == "-"
   wrk.headers["Content-Type"] = raw and "image/jpeg" or "multipart/form-data; boundary=boundary"
   for index = 2, #args do
      local file = assert(io.open(args[index], "rb"))
      local body = file:read("*a")
      file:close()
      requests[#requests + 1] = wrk.format("POST", nil, nil, raw and body or form(name, body))
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function done(summary, latency)
   local errors = summary.errors
   local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
   io.write(string.format(
      '\n{"seconds": %f, "requests": %d, "failed": %d, "p50_ms": %f, "p99_ms": %f}\n',
      summary.duration / 1e6, summary.requests, failed,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
