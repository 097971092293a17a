-- A wrk script that posts the files of a folder in turn and ends with one line of JSON.
--   wrk -t1 -c16 -d10s --latency -s post.lua URL -- FOLDER COUNT [FIELD]
-- With FIELD each file is sent as a part of a multipart form, as LitServe and BentoML need it; without, as the body.

local requests, at = {}, 0

init = function(args)
  local folder, count, field = args[1], tonumber(args[2]), args[3]
  for number = 0, count - 1 do
    local file = assert(io.open(string.format("%s/%06d.jpg", folder, number), "rb"))
    local body = file:read("*a")
    file:close()
    local headers = { ["Content-Type"] = "image/jpeg" }
    if field then
      local mark = "striate-bench-mark"
      headers["Content-Type"] = "multipart/form-data; boundary=" .. mark
      body = "--" .. mark .. '\r\nContent-Disposition: form-data; name="' .. field .. '"; filename="a.jpg"\r\n'
        .. "Content-Type: image/jpeg\r\n\r\n" .. body .. "\r\n--" .. mark .. "--\r\n"
    end
    requests[number] = wrk.format("POST", nil, headers, body)
  end
  at = -1
end

request = function()
  at = (at + 1) % (#requests + 1)
  return requests[at]
end

done = function(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, '
      .. '"refused": %d, "broken": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
