-- Forms (multipart/form-data, RFC 7578) as TorchServe's frontend may get them: netty 4.1.53 bounds
-- neither the number of a form's parts nor their headers, and a few MB of either take it seconds and
-- hundreds of MB (CVE-2024-29025). Where netty could read a form in another way than this file does,
-- the form is refused.

local form = {}

local PARTS = 100
local HEAD = 1000 -- Most bytes of a part's headers.
local PARAMETERS = 8 -- Most parameters of a part's Content-Disposition.
local CONTENT = 6553500 -- TorchServe has netty write a larger part to a file.

local TOKEN = "[%w!#$%%&'*+.^_`|~-]+"
local ENCODINGS = { ["7bit"] = true, ["8bit"] = true, ["binary"] = true }

-- Split the parameters of a header (`; name=value; name="value"`) off, in the order given.
-- Returns a table by name, in lower case, and their number; nil for what is not understood.
local function parameters(text)
    local found, count, place = {}, 0, 1
    while place <= #text do
        local _, stop, name = text:find("^[ \t]*;[ \t]*(" .. TOKEN .. ")=", place)
        if not stop or found[name:lower()] then
            return nil
        end
        local value
        if text:sub(stop + 1, stop + 1) == '"' then
            local close = stop + 2
            while text:find('^[^"]', close) do
                close = close + (text:sub(close, close) == "\\" and 2 or 1)
            end
            if text:sub(close, close) ~= '"' then
                return nil
            end
            value, stop = text:sub(stop + 2, close - 1), close
        else
            _, stop, value = text:find("^([^ \t;\"]+)", stop + 1)
            if not stop then
                return nil
            end
        end
        found[name:lower()] = value
        count, place = count + 1, stop + 1
    end
    return found, count
end

-- Read the content type of a form.
-- Returns its boundary; nil and the fault where it has none that all readers agree on.
function form.boundary(content_type)
    local rest = content_type:match("^[ \t]*[Mm][Uu][Ll][Tt][Ii][Pp][Aa][Rr][Tt]/"
        .. "[Ff][Oo][Rr][Mm]%-[Dd][Aa][Tt][Aa](.-)[ \t;]*$")
    local found = rest and parameters(rest)
    if not found then
        return nil, "The form's content type cannot be read."
    end
    local boundary, charset = found.boundary, (found.charset or "utf-8"):lower()
    if not boundary then
        return nil, "The form's content type names no boundary."
    elseif #boundary > 70 then
        return nil, "The form's boundary may have 70 characters (RFC 2046)."
    elseif boundary:find("[^%w'()+_,./:=? -]") or boundary:find(" $") then
        return nil, "The form's boundary has characters that RFC 2046 does not allow."
    elseif charset ~= "utf-8" and charset ~= "utf8" then
        return nil, "A form's charset is utf-8."
    end
    return boundary
end

-- Check the headers of a part, without the empty line after them. Returns a fault, or nil.
local function check_head(head, size)
    local headers = {}
    for line in (head .. "\r\n"):gmatch("(.-)\r\n") do
        local name, value = line:match("^(" .. TOKEN .. "):[ \t]*(.-)[ \t]*$")
        name = name and name:lower()
        if not name or headers[name] or value:find("[%z\1-\8\10-\31\127]") then
            return "A part's headers cannot be read."
        end
        headers[name] = value
    end
    local rest = (headers["content-disposition"] or ""):match("^[Ff][Oo][Rr][Mm]%-[Dd][Aa][Tt][Aa](.*)$")
    local found, count = parameters(rest or "x")
    if not found or (found.name or "") == "" then
        return 'Each part needs a header like Content-Disposition: form-data; name=\\"data\\".'
    elseif count > PARAMETERS then
        return "A part's Content-Disposition has too many parameters."
    elseif (headers["content-type"] or ""):lower():find("multipart", 1, true) then
        return "A part may not be a form of its own: send each image as a part with the name data."
    elseif not ENCODINGS[(headers["content-transfer-encoding"] or "binary"):lower()] then
        return "A part's Content-Transfer-Encoding must be binary, 8bit or 7bit."
    elseif headers["content-length"] and headers["content-length"] ~= tostring(size) then
        return "A part's Content-Length is not its length."
    end
end

-- Check a form.
-- Returns the number of bytes before its first boundary (the preamble, which netty cannot read);
-- nil, the fault, and the status 413 where a part is too large.
--
-- Netty takes each line that begins with the boundary for the end of a part, also after a bare LF and
-- with any text after it, so that no such line is let through.
function form.check(body, boundary)
    local delimiter = "--" .. boundary
    local first = body:sub(1, #delimiter) == delimiter and 1 or nil
    local preamble, parts, begin = 0, 0, nil
    local place = 1
    while true do
        local start = first
        if not start then
            local line = body:find("\n" .. delimiter, place, true)
            if not line then
                break
            elseif line == 1 or body:byte(line - 1) ~= 13 then
                return nil, "The form's boundary begins a line that is not one of its delimiters."
            end
            start = line + 1
        end
        first = nil
        if begin then
            -- A part without content has the delimiter right after the empty line of its headers.
            local block = body:sub(begin, math.min(begin + HEAD + 3, start - 1))
            local stop = block:find("\r\n\r\n", 1, true)
            if not stop then
                return nil, "A part's headers may have " .. HEAD .. " bytes, and end with an empty line."
            end
            local size = start - 2 - (begin + stop + 3)
            if size > CONTENT then
                return nil, "A part may have " .. CONTENT .. " bytes.", 413
            end
            local fault = size < 0 and "A part's content and the boundary need a line end between them."
                or check_head(block:sub(1, stop - 1), size)
            if fault then
                return nil, fault
            end
        else
            preamble = start - 1
        end
        local after = start + #delimiter
        if body:sub(after, after + 1) == "\r\n" then
            parts, begin, place = parts + 1, after + 2, after + 1
            if parts > PARTS then
                return nil, "A form may have " .. PARTS .. " parts."
            end
        elseif begin and body:sub(after, after + 1) == "--" then
            -- What follows is the epilogue, which netty does not read.
            local rest = body:sub(after + 2, after + 3)
            if (rest == "" or rest == "\r\n") and not body:find("\n" .. delimiter, after, true) then
                return preamble
            end
            return nil, "Something follows the form's last boundary."
        else
            return nil, "The form's boundary begins a line that is not one of its delimiters."
        end
    end
    return nil, begin and "The form ends before its last boundary."
        or "The form's boundary is not in its body."
end

return form
