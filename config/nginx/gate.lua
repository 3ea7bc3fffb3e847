-- The parts of the proxy that nginx's directives cannot express: reading each server's current
-- token, choosing the requests that another server should get, checking whether any server can
-- classify images, and counting responses.
--
-- The work-arounds are for TorchServe 0.12.

local ffi = require("ffi")
local process = require("ngx.process")
local base = require("resty.core.base")

ffi.cdef([[
    int kill(int pid, int sig);
    long recv(int socket, void *buffer, unsigned long length, int flags);

    // The first fields of nginx's structures, the same in each of its releases.
    typedef struct { void *data, *read, *write; int socket; } visionserve_connection;
    typedef struct { uint32_t signature; visionserve_connection *connection; } visionserve_request;
]])

local clock = dofile(ngx.config.prefix() .. "clock.lua")
local form = dofile(ngx.config.prefix() .. "form.lua")
local turns = dofile(ngx.config.prefix() .. "turns.lua")

local gate = {}
local counts, answers = ngx.shared.counts, ngx.shared.answers

local PATIENCE = 12 -- After so many seconds without an answer, a model counts as stuck.
local TRIAL = 5 -- A stuck model gets one request in so many seconds, as a trial.
local RECENT = 3 -- A server counts as ready for so many seconds after an answer.
local HEADERS = 4000 -- Most bytes of headers; TorchServe takes 8,192 with those that nginx adds.
local WORKER = "x-visionserve-worker" -- Which worker has answered, by process id and batch size.
local SIGHUP, SIGUSR1 = 1, 10
local MSG_PEEK_DONTWAIT = 0x42
local FILES = 5
local ENOENT = 2

local KEPT = {
    ["accept"] = true,
    ["accept-language"] = true,
    ["content-encoding"] = true,
    ["content-length"] = true,
    ["content-type"] = true,
    ["inference-header-content-length"] = true,
    ["traceparent"] = true,
    ["transfer-encoding"] = true,
}

-- https://www.w3.org/TR/trace-context/#traceparent-header
local TRACE = "^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$"

-- What a person's browser gets for these statuses in place of JSON.
local OUTAGE = assert(io.open(ngx.config.prefix() .. "outage.html")):read("*a")
local OUTAGES = { [429] = true, [502] = true, [503] = true, [504] = true }

local UNAVAILABLE = '{"error":{"code":"unavailable","message":"No server can answer now."}}'
local TIMEOUT = '{"error":{"code":"timeout","message":"No server answered in 30 s."}}'

-- What is counted by model and version, by the metric.
local BY_VERSION = {
    visionserve_gate_requests_total = "requests",
    visionserve_gate_failures_total = "failures",
    visionserve_gate_seconds_total = "seconds",
}

-- Wrap a handler so that its errors are logged, as critical: lower levels are not logged.
local function guarded(handler)
    return function(...)
        local ok, fault = xpcall(handler, debug.traceback, ...)
        if not ok then
            ngx.log(ngx.CRIT, fault)
            if not ngx.headers_sent then
                ngx.status = 500
            end
        end
    end
end

local function refuse(status, code, message)
    ngx.status = status
    local text = string.format('{"error":{"code":"%s","message":"%s"}}', code, message)
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Content-Length"] = #text
    ngx.print(text)
    return ngx.exit(ngx.HTTP_OK)
end

-- Read the body, which may lie in a file of nginx.
local function body()
    local file = ngx.req.get_body_file()
    if not file then
        return ngx.req.get_body_data() or ""
    end
    local open = assert(io.open(file, "rb"))
    local text = open:read("*a")
    open:close()
    return text
end

-- Refuse a form that TorchServe could read in another way, and write the content type in one way.
local function settle_type()
    local headers = ngx.req.get_headers(0)
    local type, coding = headers["content-type"] or "", headers["content-encoding"] or "identity"
    if type:lower():find("multipart/form-data", 1, true) then
        if coding ~= "identity" then
            return refuse(415, "unsupported_encoding", "A form is sent without Content-Encoding.")
        end
        local boundary, fault = form.boundary(type)
        local preamble, status
        if boundary then
            local text = body()
            preamble, fault, status = form.check(text, boundary)
            if preamble and preamble > 0 then
                ngx.req.set_body_data(text:sub(preamble + 1))
            end
        end
        if fault then
            return refuse(status or 400, "invalid_form", fault)
        end
        ngx.req.set_header("Content-Type", 'multipart/form-data; boundary="' .. boundary .. '"')
    elseif type:lower():find("x-www-form-urlencoded", 1, true) then
        -- `curl --data` names this type unless it is given another one. TorchServe would then fail to
        -- read the image as a form.
        ngx.req.set_header("Content-Type", "application/octet-stream")
    end
end

-- Tell whether the client has hung up. TorchServe 0.12 classifies all that it gets, whether anybody
-- waits for the answer or not, so that such a request is not passed on. `ngx.on_abort` cannot tell it:
-- an abort after the access phase would have nginx pass the request on a second time.
local byte = ffi.new("char[1]")
local function gone()
    local request = ffi.cast("visionserve_request *", base.get_request())
    return ffi.C.recv(request.connection.socket, byte, 1, MSG_PEEK_DONTWAIT) == 0
end

-- Tell whether no server has answered requests to this address of a model for long.
local function stuck(uri)
    local late = false
    for _, name in ipairs(answers:get_keys(0)) do
        local age = clock() - (answers:get(name) or 0)
        if name:sub(-#uri) == uri and age < PATIENCE then
            return false
        elseif name:sub(-#uri - 8) == uri .. " waiting" and age > PATIENCE then
            late = true
        end
    end
    return late
end

-- Return what a file holds; nothing if it is not there.
local function content(path)
    local file = io.open(path)
    local text = file and file:read("*a") or ""
    if file then
        file:close()
    end
    return text
end

-- The canaries of the site: model, version and per cent of the clients. They are read for each
-- request, as a new configuration would close connections that clients keep and are using.
local function canaries()
    return content(ngx.config.prefix() .. "site.json"):gmatch('{"model":"([%w_.-]+)","version":"([%w_.-]+)","share":([%d.]+)}')
end

-- Choose a client's version at an address of a model, by a hash of its network. A client of a share
-- is in any larger one, too; another version is another hash, so that not the same clients try each.
-- Returns what comes after the address, and what is counted if the model has a canary.
local function choose(asked, network)
    local model, named = asked:match("^/%a+/([^/]+)/?(.*)$")
    for canary, version, share in canaries() do
        if canary == model then
            local a, b, c = ngx.md5_bin(network .. " " .. model .. " " .. version):byte(1, 3)
            local place = (65536 * a + 256 * b + c) / 16777216
            if named == "" and place < tonumber(share) / 100 then
                return "/" .. version, model .. " " .. version
            end
            local known = named == "" and "default" or named == version and version
            return "", known and model .. " " .. known or ""
        end
    end
    return "", ""
end

-- Refuse requests that TorchServe would refuse or misread, remove all headers but the ones that the
-- handler reads, and have the client's next request wait for its turn at the servers of its version.
function gate.admit(asked)
    local canary, counted = choose(asked, ngx.var.network)
    ngx.var.canary, ngx.var.counted = canary, counted
    local uri = asked .. canary
    if ngx.var.request_uri:find("?", 1, true) and ngx.var.uri ~= "/" then
        return refuse(
            400, "query_not_supported",
            "Send options as X-Classify- headers or with the image, not in a query."
        )
    end
    local size = 0
    for name, value in pairs(ngx.req.get_headers(0)) do
        if name == "traceparent" and (type(value) == "table" or not ngx.re.find(value, TRACE, "jo")) then
            ngx.req.clear_header(name)
        elseif KEPT[name] or name:find("^x%-classify%-") then
            if name:find("^content%-") and type(value) == "table" then
                return refuse(400, "bad_request", "A request has one Content-Type and one Content-Encoding.")
            end
            local text = type(value) == "table" and table.concat(value) or value
            if text:find("[^\t\32-\126]") then
                return refuse(400, "bad_request", "A header has characters beyond ASCII.")
            end
            size = size + #name + #text
        elseif name ~= "expect" then -- nginx answers it, and does not pass it on.
            ngx.req.clear_header(name)
        end
    end
    if size > HEADERS then
        return refuse(431, "headers_too_large", "The headers are too long.")
    end
    ngx.req.read_body()
    settle_type()
    local place = turns.wait(ngx.var.network, uri, stuck, gone)
    if not place and gone() then
        return ngx.exit(499)
    elseif not place and stuck(uri) then
        return refuse(503, "unavailable", "No server can answer now.")
    elseif not place then
        return refuse(429, "too_many_requests", "Send fewer requests at a time.")
    end
    ngx.var.place = place
end

-- The network that a client's address belongs to.
function gate.network(address)
    return turns.network(address)
end

-- The folder with links to the servers' key files.
local keys

local function token(server)
    return content(keys .. server .. ".key"):match('"inference"%s*:%s*{%s*"key"%s*:%s*"([^"]+)"')
end

local function type_of(answer)
    return answer.body:match('^%s*{%s*"code"%s*:%s*%d+%s*,%s*"type"%s*:%s*"(%w+)"')
end

-- TorchServe answers HEAD with a body. It is asked with GET, and nginx leaves the body out.
local function forward(server, uri)
    local key, method = token(server), ngx.var.sent_method
    return ngx.location.capture("/" .. server .. uri, {
        method = ngx["HTTP_" .. (method == "HEAD" and "GET" or method)],
        always_forward_body = true,
        vars = { authorization = key and "Bearer " .. key or "" },
    })
end

-- Send a 403, which makes nginx try another server without counting a failure of this one. If no
-- other server is left, `finish` replaces the 403 by the real status.
local function elsewhere(status, body)
    ngx.status = 403
    ngx.header["X-Status"] = status
    ngx.header["Content-Type"] = "application/json"
    ngx.print(body or (status == 504 and TIMEOUT or UNAVAILABLE))
end

local function connects(host, port)
    local socket = ngx.socket.tcp()
    socket:settimeout(500)
    local connected = socket:connect(host, port)
    socket:close()
    return connected
end

-- Pass a request to a TorchServe, and its response back. If the model is stuck, another server gets
-- the request at once.
local function ask(server, host, port, uri)
    ngx.req.read_body()
    local model = server .. uri
    local waiting = model .. " waiting"
    answers:add(waiting, clock())
    local since = answers:get(waiting)
    if since and clock() - since > PATIENCE then
        local tried = answers:get(model .. " trial")
        if tried and clock() - tried < TRIAL then
            return elsewhere(503)
        end
        answers:set(model .. " trial", clock())
    end
    local answer = forward(server, uri)
    local fault = type_of(answer)
    -- TorchServe uses a new key before it writes it to the file, so that the file's key may be refused
    -- for a moment.
    for _ = 1, 20 do
        if answer.status ~= 400 or fault ~= "InvalidKeyException" then
            break
        end
        ngx.sleep(0.05)
        answer = forward(server, uri)
        fault = type_of(answer)
    end
    local status = answer.truncated and 502 or answer.status
    local answered = not fault and status ~= 502 and status ~= 504
    if answered then
        answers:set(model, clock())
    end
    if answered or status < 500 or status == 503 then
        answers:delete(waiting)
    end
    if fault == "InvalidKeyException" then
        counts:incr("refused " .. server, 1, 0)
        return elsewhere(503)
    elseif (status == 502 or status == 504) and not fault then
        -- Only a server that refuses connections counts as failed. If it takes them, the request
        -- itself may be the cause.
        if status == 504 or connects(host, port) then
            return elsewhere(status)
        end
        answers:delete(waiting)
        ngx.status = status
        ngx.header["Content-Type"] = "application/json"
        ngx.print(UNAVAILABLE)
        return
    elseif status == 503 and fault then
        return elsewhere(503, answer.body)
    elseif (status == 403 or status == 500) and fault and fault ~= "InternalServerException" then
        -- These errors mean that TorchServe's frontend could not read the body.
        ngx.status = 400
        ngx.header["Content-Type"] = "application/json"
        ngx.print('{"error":{"code":"malformed_body","message":"The body is not what its content type says."}}')
        return
    end
    ngx.status = status
    for name, value in pairs(answer.header) do
        if name:lower() == WORKER then
            turns.met(server, uri, value)
        else
            ngx.header[name] = value
        end
    end
    ngx.print(answer.body)
end

-- What a TorchServe's own socket gets.
gate.ask = guarded(function(server, host, port)
    ask(server, host, port, ngx.var.uri)
end)

-- Tell whether nginx has been told to end: it removes its sockets at once, also while it waits for
-- bodies, turns and answers.
local function ending(server)
    local _, _, fault = io.open(ngx.config.prefix() .. server .. ".sock")
    return fault == ENOENT
end

-- Answer a request that no TorchServe's socket took. While nginx ends, it is passed on without them;
-- the servers are each one's name, host and port.
gate.unanswered = guarded(function(...)
    for _, server in ipairs(ngx.var.asked == "" and {} or { ... }) do
        local name, host, port = unpack(server)
        if ending(name) and connects(host, port) then
            return ask(name, host, port, ngx.var.asked .. ngx.var.canary)
        end
    end
    ngx.header["Content-Length"] = #ngx.var.error
    ngx.print(ngx.var.error)
end)

local function leave()
    local place = ngx.var.place or ""
    if place ~= "" then
        turns.leave(place)
        ngx.var.place = ""
    end
end

-- Tell whether a person opens the page: browsers ask for HTML with GET, the page itself for JSON.
local function opens_page()
    local accepted = ngx.req.get_headers(0)["accept"]
    return ngx.req.get_method() == "GET" and type(accepted) == "string" and accepted:find("text/html", 1, true)
end

-- Set the real status of a response whose status was replaced, the header Retry-After, and whether
-- `rewrite` is to look at the body.
function gate.finish()
    leave()
    if ngx.header["X-Status"] then
        ngx.status = tonumber(ngx.header["X-Status"])
        ngx.header["X-Status"] = nil
    end
    if ngx.status == 429 or ngx.status == 502 or ngx.status == 503 then
        ngx.header["Retry-After"] = 2
    end
    if OUTAGES[ngx.status] and opens_page() then
        ngx.ctx.outage = true
        ngx.var.outage = "1"
        ngx.header["Content-Type"] = "text/html; charset=utf-8"
        ngx.header["Content-Length"] = #OUTAGE
        return
    end
    if ngx.status == 405 then
        ngx.header["Allow"] = ngx.var.allow
    end
    if ngx.status >= 400 and (ngx.var.request_uri or ""):find("^/v[12]%f[/?%z]") then
        ngx.ctx.error = ""
        ngx.header["Content-Length"] = nil
    end
end

-- Write a page for people where no server answers, and an error as the Open Inference Protocol does,
-- `{"error": "..."}`, whether nginx, TorchServe or the handler said it. Clients of the protocol fail
-- over any other form.
function gate.rewrite()
    if ngx.ctx.outage then
        ngx.arg[1] = ngx.arg[2] and OUTAGE or nil
        return
    end
    local text = ngx.ctx.error
    if not text then
        return
    end
    text = text .. (ngx.arg[1] or "")
    ngx.ctx.error = text
    if not ngx.arg[2] then
        ngx.arg[1] = nil
        return
    end
    local code, message = text:match('^{"error":%s*{"code":%s*"([^"]*)",%s*"message":%s*"(.*)"}}%s*$')
    if not code then
        code, message = text:match('^{%s*"code":%s*%d+,%s*"type":%s*"(%w+)",%s*"message":%s*"(.*)"%s*}%s*$')
    end
    ngx.arg[1] = code and '{"error":"' .. code .. ": " .. message .. '"}' or text
end

local function ready()
    turns.note("probe")
    local answer = ngx.location.capture("/probe")
    if answer.status == 200 then
        return true
    end
    -- The probe also fails if the queue is full or long. The servers are ready nevertheless if other
    -- requests were answered a moment ago.
    for _, name in ipairs(answers:get_keys(0)) do
        local at = not name:find(" ", 1, true) and answers:get(name)
        if at and clock() - at < RECENT then
            return true
        end
    end
    return false
end

-- Tell whether any server can classify images, by having one classified.
gate.ping = guarded(function()
    local healthy = ready()
    local text = string.format('{"status":"%s"}', healthy and "Healthy" or "Unhealthy")
    if ngx.var.uri == "/v2/health/ready" then
        text = string.format('{"ready":%s}', healthy)
    end
    ngx.status = healthy and 200 or 503
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Content-Length"] = #text
    ngx.print(text)
end)

function gate.log()
    leave()
    counts:incr("status " .. ngx.status, 1, 0)
    -- Of a model with a canary, what a server got or no server could answer; the seconds at servers.
    local version, spent = ngx.var.counted or "", ngx.var.upstream_response_time
    if version ~= "" and (spent or ngx.status >= 500) then
        counts:incr("requests " .. version, 1, 0)
        -- A server's 404 says that the version is not there any more.
        counts:incr("failures " .. version, (ngx.status >= 500 or ngx.status == 404) and 1 or 0, 0)
        for seconds in (spent or ""):gmatch("[%d.]+") do
            counts:incr("seconds " .. version, tonumber(seconds), 0)
        end
    end
end

-- Print the metrics in Prometheus' text format.
gate.metrics = guarded(function(...)
    local lines = { "# TYPE visionserve_gate_ready gauge" }
    local function add(format, ...)
        lines[#lines + 1] = string.format(format, ...)
    end
    add("visionserve_gate_ready %d", ready() and 1 or 0)
    add("# TYPE visionserve_gate_answers_total counter")
    -- Prometheus misses the first count of what it never saw at 0.
    for model, version in canaries() do
        for _, kind in pairs(BY_VERSION) do
            counts:add(kind .. " " .. model .. " " .. version, 0)
            counts:add(kind .. " " .. model .. " default", 0)
        end
    end
    local names = counts:get_keys(0)
    table.sort(names)
    for _, name in ipairs(names) do
        local status = name:match("^status (%d+)$")
        if status then
            add('visionserve_gate_answers_total{status="%s"} %d', status, counts:get(name))
        end
    end
    for metric, kind in pairs(BY_VERSION) do
        add("# TYPE %s counter", metric)
        for _, name in ipairs(names) do
            local model, version = name:match("^" .. kind .. " (%S+) (%S+)$")
            if model then
                add('%s{model="%s",version="%s"} %s', metric, model, version, counts:get(name))
            end
        end
    end
    add("# TYPE visionserve_gate_refused_tokens_total counter")
    for _, server in ipairs({ ... }) do
        add(
            'visionserve_gate_refused_tokens_total{server="%s"} %d',
            server, counts:get("refused " .. server) or 0
        )
    end
    add("# TYPE visionserve_gate_key_written_seconds gauge")
    add("# TYPE visionserve_gate_key_expires_seconds gauge")
    for _, server in ipairs({ ... }) do
        local key = ngx.location.capture("/keys/" .. server .. ".key")
        local written = ngx.parse_http_time(key.header["Last-Modified"] or "")
        if written then
            add('visionserve_gate_key_written_seconds{server="%s"} %d', server, written)
        end
        local pattern = '"inference".-"expiration time"%s*:%s*"(%d+)-(%d+)-(%d+)T(%d+):(%d+)'
        local year, month, day, hour, minute = key.body:match(pattern)
        if year then
            -- os.time expects local time, but the file's time is UTC.
            local now = ngx.time()
            local shift = now - os.time(os.date("!*t", now))
            local wanted = { year = year, month = month, day = day, hour = hour, min = minute }
            add(
                'visionserve_gate_key_expires_seconds{server="%s"} %d',
                server, os.time(wanted) + shift
            )
        end
    end
    ngx.print(table.concat(lines, "\n"), "\n")
end)

-- Rename a log that has reached its limit, and have nginx open a new one.
local function rotate(path, limit)
    local file = io.open(path)
    local size = file and file:seek("end") or 0
    if file then
        file:close()
    end
    if size < limit then
        return
    end
    for number = FILES - 1, 1, -1 do
        os.rename(path .. "." .. number, path .. "." .. number + 1)
    end
    os.rename(path, path .. ".1")
    ffi.C.kill(process.get_master_pid(), SIGUSR1)
end

-- nginx has a server rest after failures, by the wall clock: one that is set back by an hour would
-- have it rest for an hour. Reloading its configuration makes nginx forget failures.
local function watch_clock(ahead)
    local now = ngx.time() - clock()
    if now < ahead - 1.5 then
        ffi.C.kill(process.get_master_pid(), SIGHUP)
    end
    return now
end

-- Start a worker, which uses the keys of its own configuration. The first one writes the
-- configuration's identity to a file, which `visionserve proxy` waits for, and looks after the logs and
-- the clock from then on.
function gate.begin(identity, limit)
    keys = ngx.config.prefix() .. "keys-" .. identity .. "/"
    if ngx.worker.id() ~= 0 then
        return
    end
    local file = assert(io.open(ngx.config.prefix() .. "identity", "w"))
    file:write(identity)
    file:close()
    local ahead = ngx.time() - clock()
    ngx.timer.every(2, function()
        ahead = watch_clock(ahead)
        for _, name in ipairs({ "access.log", "error.log" }) do
            rotate(ngx.config.prefix() .. "logs/" .. name, limit)
        end
    end)
end

_G.gate = gate
