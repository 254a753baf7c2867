//! The page in a browser, with a real node behind it, and the stream that it listens to.

use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use crate::browser::{Browser, ENTER, SPACE, TAB};
use crate::cluster::{Cluster, Options, Stop, free_port};
use crate::node::{ACME, Node, exchange, until};

/// In which the page tells what happened.
const SOON: Duration = Duration::from_secs(5);
/// Often enough to be waited for.
const BRISK: &str = "[feed]\nheartbeat_every = \"200ms\"\n";
const GOOD: &str = "document.querySelector('#verdict').dataset.tone === 'good'";

/// Where a browser finds a node's admin socket, as `ssh -L 8378:/run/sidetone-admin/admin.sock` makes it.
pub(crate) async fn tunnel(node: &Node) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = node.path("admin/admin.sock");
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let socket = socket.clone();
            tokio::spawn(async move {
                if let Ok(mut far) = UnixStream::connect(socket).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    format!("http://localhost:{port}/")
}

/// The console has nothing to say, and nobody but the node was asked for anything.
pub(crate) async fn is_at_peace(browser: &Browser, url: &str) {
    let asked = browser.requests().await;
    assert!(asked.len() > 5, "{asked:?}");
    let strangers: Vec<_> = asked
        .iter()
        .filter(|asked| ["http", "ws"].iter().any(|kind| asked.starts_with(kind)))
        .filter(|asked| !asked.starts_with(url))
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    let console = browser.console().await;
    assert!(console.is_empty(), "{console:?}");
}

/// A browser that shows the page of a node with which all is well, and where that is.
async fn shown(node: &Node) -> (String, Browser) {
    let url = tunnel(node).await;
    let browser = Browser::open("en").await;
    browser.go(&url).await;
    browser.until(GOOD).await;
    (url, browser)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_asks_nobody_but_its_node_and_shows_how_that_is() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, BRISK).await;
    node.level().await;
    let (url, browser) = shown(&node).await;
    browser
        .reads("#verdict-title", "Answering, level with Postgres")
        .await;
    browser.reads("#node", "n1").await;
    browser.reads("#tile-ready", "numbers: 3, tenants: 3").await;
    browser.reads("#contact", "live").await;
    browser.reads("#rows", "None: every row is in force.").await;
    // Calls are seen within the second, by how they end.
    for _ in 0..40 {
        node.get(&format!("/v1/lookup?to={ACME}")).await;
        node.get("/v1/lookup?to=%2B19995550100").await;
    }
    browser.until("/answered [\\d.]+\\/s\\s*refused [\\d.]+\\/s/.test(document.querySelector('#plot-calls').innerText)").await;
    browser
        .until("/half within [\\d.]+ (µs|ms)\\s*99 % within [\\d.]+/.test(document.querySelector('#plot-duration').innerText)")
        .await;
    db.sql("update public.tenant_settings set model = 'seen soon'")
        .await;
    browser
        .until("/half within [\\d.]+ /.test(document.querySelector('#plot-visible').innerText)")
        .await;
    browser
        .until("[...document.querySelectorAll('#plots canvas')].length === 6")
        .await;
    browser.click("main > details summary").await;
    browser.reads("#details", "feed.cursor").await;
    browser.picture("light").await;
    browser.colours("dark").await;
    browser
        .until("getComputedStyle(document.body).backgroundColor === 'rgb(14, 19, 24)'")
        .await;
    browser.picture("dark").await;
    browser.width(360).await;
    browser.colours("light").await;
    browser
        .until("document.querySelector('.uplot').clientWidth < 340")
        .await;
    let wide = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]";
    let wide = browser.eval(wide).await;
    assert_eq!(wide[0], wide[1], "it scrolls sideways");
    let tall = "Math.max(...[...document.querySelectorAll('#details dd')].map((one) => one.offsetHeight)) < 90";
    assert_eq!(
        browser.eval(tall).await,
        true,
        "values are columns of letters"
    );
    browser.picture("narrow").await;
    is_at_peace(&browser, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_asks_for_a_call_by_keyboard_alone_and_reads_why_in_either_language() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, BRISK).await;
    node.level().await;
    let url = tunnel(&node).await;
    let browser = Browser::open("es-AR,es").await;
    browser.go(&url).await;
    browser
        .reads("#verdict-title", "Responde, al día con Postgres")
        .await;
    assert_eq!(browser.eval("document.documentElement.lang").await, "es");
    browser.keys(TAB).await;
    assert_eq!(
        browser.eval("document.activeElement.className").await,
        "skip"
    );
    browser.tab_to("[data-language=en]").await;
    browser.keys(ENTER).await;
    browser
        .reads("#verdict-title", "Answering, level with Postgres")
        .await;
    browser.reload().await;
    browser
        .reads("#verdict-title", "Answering, level with Postgres")
        .await;

    // One prompt for each thing that keeps one out, beside those of the example.
    let with = |prompt: &str, conditions: &str, account: &str, event: &str, number: &str| {
        format!(
            "insert into public.prompt_bindings (prompt_id, conditions_json, account_ref, event_type, phone_number_id)
             values ({prompt}, '{conditions}', {account}, {event}, {number});"
        )
    };
    let id = |n: u32| format!("'00000000-0000-4000-8000-00000000000{n}'");
    let (none, other) = ("null", "'f1a2b3c4-0002-4000-8000-000000000002'");
    let prompts: String = (1..=6)
        .map(|n| {
            let scope = ["global", "global", "event_type", "account", "global", "global"];
            format!(
                "insert into public.prompts (id, tenant_id, name, scope, active)
                 values ({id}, '6f717b5a-1a2b-4c3d-9e8f-112233445566', 'kept out {n}', '{}', {});
                 insert into public.prompt_versions (prompt_id, version, content) select {id}, 1, 'x' where {n} <> 2;",
                scope[n as usize - 1],
                n != 1,
                id = id(n),
            )
        })
        .collect();
    let bindings = [
        with(&id(4), "{}", none, "'door_open'", none),
        with(&id(5), "{}", "'NOBODY'", none, none),
        with(&id(5), "{}", none, "'fire'", none),
        with(&id(5), "{}", none, none, other),
        with(&id(5), r#"{"zone_in":["Z7"]}"#, none, none, none),
        with(&id(5), r#"{"vip":"yes"}"#, none, none, none),
        with(&id(5), r#"{"colour_not_in":["red"]}"#, none, none, none),
        with(&id(6), r#"{"odd":{"a":1}}"#, none, none, none),
    ]
    .concat();
    db.sql(&format!("begin;{prompts}{bindings}commit")).await;
    until("the node has them", async || {
        let path = format!("/v1/admin/explain?to={ACME}");
        node.admin("GET", &path, "")
            .await
            .body
            .contains("kept out 6")
    })
    .await;

    browser.tab_to("#ask [name=to]").await;
    browser.keys("sip:+1 (415) 555-0100@edge").await;
    browser.tab_to("#ask [name=account_ref]").await;
    browser.keys("ACME-001234").await;
    browser.tab_to("#ask [name=event_type]").await;
    browser.keys("door_open").await;
    browser.tab_to("#ask [name=zones]").await;
    browser.keys("Z1, Z9").await;
    browser.tab_to("#ask .attribute-name").await;
    browser.keys("vip").await;
    browser.tab_to("#ask .attribute-value").await;
    browser.keys("a+b & c").await;
    browser.tab_to("#attribute-more").await;
    browser.keys(SPACE).await;
    browser.tab_to("#ask [type=submit]").await;
    browser.keys(ENTER).await;
    browser
        .reads(
            "#answer",
            "+14155550100 is answered (Seguridad ACME S.A.); prompts chosen: 4 of 10.",
        )
        .await;
    let told = node
        .admin(
            "GET",
            &format!("/v1/admin/explain?to={ACME}&account_ref=ACME-001234&event_type=door_open&zone=Z1&zone=Z9&attr.vip=a%2Bb%20%26%20c"),
            "",
        )
        .await
        .json();
    let seen = browser.text("#why").await;
    for prompt in told["prompts"].as_array().unwrap() {
        let bindings = prompt["bindings"].as_array().unwrap();
        let reasons = bindings.iter().map(|binding| &binding["why"]);
        for said in [&prompt["name"], &prompt["why"]].into_iter().chain(reasons) {
            let said = said.as_str().unwrap();
            let said = said.split_once(": ").map_or(said, |(_, reason)| reason);
            assert!(seen.contains(said), "{said} not in {seen}");
        }
    }
    for (name, field) in told["fields"].as_object().unwrap() {
        assert!(
            seen.contains(name) && seen.contains(field["why"].as_str().unwrap()),
            "{name}: {seen}"
        );
    }
    assert_eq!(
        browser
            .eval("document.querySelectorAll('.prompts > li').length")
            .await,
        told["prompts"].as_array().unwrap().len()
    );
    // What a call would get stands there as the call gets it, and no call was counted.
    browser.tab_to("#why summary").await;
    browser.keys(ENTER).await;
    browser
        .reads("#why pre", "\"account_ref\": \"ACME-001234\"")
        .await;
    assert_eq!(
        node.metric("sidetone_lookups_total{outcome=\"ok\"}").await,
        0.0
    );
    browser.picture("why").await;
    // The question stands in another language without being asked again; no reason is left in English.
    browser.click("[data-language=es]").await;
    browser.reads("#answer", "tiene respuesta").await;
    let english = "[...document.querySelectorAll('.prompts [lang=en], #why .facts [lang=en], #why td:last-child [lang=en]')].map((one) => one.innerText).filter(Boolean)";
    assert_eq!(browser.eval(english).await, serde_json::json!([]));
    browser.picture("spanish").await;
    // Both languages say the same things.
    let keys = "import('/assets/i18n.js').then(({messages}) => Object.values(messages).map((of) => Object.keys(of).sort().join()))";
    let keys = browser.eval(keys).await;
    assert_eq!(keys[0], keys[1]);
    let unknown = "+1 999 555 0100";
    browser.fill("#ask [name=to]", unknown).await;
    browser.click("#ask [type=submit]").await;
    browser
        .reads("#answer", "Una llamada recibe «unknown_number»")
        .await;
    is_at_peace_but_for(&browser, "404").await;
}

/// A refused question is told in the console by the browser itself.
async fn is_at_peace_but_for(browser: &Browser, code: &str) {
    let console = browser.console().await;
    assert!(
        console.iter().all(|line| line.contains(code)),
        "{console:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rows_say_is_text_on_the_page_whatever_it_is() {
    let db = Cluster::shared().database().await;
    let evil = "<img src=x onerror=\"window.bad=1\"><script>window.bad=1</script>&amp;{count}";
    let quoted = evil.replace('\'', "''");
    let node = {
        let node = Node::prepare(&db.url(), BRISK);
        db.load_example_sealed(|row| node.seal(&row.tenant, &row.provider, &row.name, "x"))
            .await;
        db.sql(&format!(
            "update public.tenants set name = '{quoted}' where slug = 'seguridad-acme-sa';
             update public.tenant_phone_numbers set label = '{quoted}' where e164 = '+14155550100';
             update public.prompts set name = '{quoted}';
             update public.prompt_bindings set account_ref = '{}';
             update public.tenant_phone_numbers set timezone = 'Mars/<b>Olympus</b>' where e164 = '+541150000002';
             update public.tenant_credentials set name = '{}', provider = '<i>p</i>'",
            quoted,
            quoted
        ))
        .await;
        let mut node = node;
        node.start();
        node.synced().await;
        node
    };
    let url = tunnel(&node).await;
    let browser = Browser::open("en").await;
    browser.go(&url).await;
    browser.reads("#rows", "+541150000002").await;
    browser.reads("#rows", "left out").await;
    browser.fill("#ask [name=to]", "+14155550100").await;
    browser.fill("#ask [name=account_ref]", evil).await;
    browser.fill("#ask .attribute-name", "<b>x</b>").await;
    browser.fill("#ask .attribute-value", evil).await;
    browser.click("#ask [type=submit]").await;
    browser.reads("#answer", evil).await;
    browser.reads("#why .prompts", evil).await;
    browser.picture("hostile").await;
    let made = "document.querySelectorAll('main img, main script, main b, main i').length";
    assert_eq!(browser.eval(made).await, 0);
    assert_eq!(browser.eval("window.bad ?? null").await, Value::Null);
    is_at_peace(&browser, &url).await;
    // And where a script of the page itself tried: the policy lets no text become markup.
    let tried = "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'done' } catch (err) { return err.name } })()";
    assert_eq!(browser.eval(tried).await, "TypeError");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_verifies_refreshes_and_lets_a_loss_through_only_when_sure() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, BRISK).await;
    node.level().await;
    let (_, browser) = shown(&node).await;
    browser.click("#verify [type=submit]").await;
    browser
        .reads("#order", "Compared tenants: 3, numbers: 3. Differences: 0")
        .await;
    // A change past the triggers is found, shown and repaired.
    db.sql(
        "alter table public.tenant_phone_numbers disable trigger sidetone_update;
         update public.tenant_phone_numbers set label = 'past the triggers' where e164 = '+14155550100'",
    )
    .await;
    browser
        .reads("#findings", "Triggers are missing or disabled")
        .await;
    browser.reads("#tile-feed", "not level").await;
    browser.click("#verify [type=submit]").await;
    browser
        .reads("#order", "Differences: 1, rows repaired: 1")
        .await;
    db.sql("alter table public.tenant_phone_numbers enable always trigger sidetone_update")
        .await;
    browser.reads("#order-result", "+14155550100").await;

    browser.click("#refresh [value=tenant]").await;
    browser.fill("#refresh [name=which]", "nobody").await;
    browser.click("#refresh [type=submit]").await;
    browser
        .reads("#order", "Not done: there is no such tenant")
        .await;
    browser
        .fill("#refresh [name=which]", "seguridad-acme-sa")
        .await;
    browser.click("#refresh [type=submit]").await;
    browser.reads("#order", "Refreshed in").await;
    browser.click("#refresh [value=number]").await;
    browser.fill("#refresh [name=which]", "+14155550100").await;
    browser.click("#refresh [type=submit]").await;
    browser.reads("#order", "Refreshed in").await;

    db.sql("delete from public.tenant_phone_numbers where e164 <> '+14155550100'")
        .await;
    browser.reads("#findings", "(tenants: 0, numbers: 2)").await;
    browser.reads("#rows", "still answered for").await;
    browser.click("#refresh [value=all]").await;
    browser.click("#refresh [name=accept_loss]").await;
    browser.click("#refresh [type=submit]").await;
    browser.reads("#loss", "tenants: 0, numbers: 2").await;
    browser.picture("loss").await;
    // The way out is the one that changes nothing, and Enter takes it.
    browser.keys(ENTER).await;
    browser.until("!document.querySelector('#loss').open").await;
    let kept = node.get("/v1/lookup?to=%2B541150000002").await;
    assert_eq!(kept.status, 200);
    browser.click("#refresh [type=submit]").await;
    browser.reads("#loss", "tenants: 0, numbers: 2").await;
    browser.click("#loss [value=yes]").await;
    browser.reads("#order", "removed: 2").await;
    browser.until(GOOD).await;
    node.until("/v1/lookup?to=%2B541150000002", |reply| reply.status == 404)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_says_within_seconds_that_postgres_or_the_node_is_gone_and_is_back() {
    let cluster = Cluster::own(Options::default());
    let db = cluster.database().await;
    let mut node = Node::with_example(
        &db,
        "[feed]\nheartbeat_every = \"200ms\"\nheartbeat_timeout = \"1s\"\nstale_after = \"2s\"\n",
    )
    .await;
    node.level().await;
    let (_, browser) = shown(&node).await;
    cluster.stop(Stop::Immediate);
    let told =
        "document.querySelector('#findings').innerText.includes('No connection to Postgres since')";
    browser.within(SOON, told).await;
    browser
        .reads("#verdict-title", "Answering from its own copy")
        .await;
    browser.reads("#tile-feed", "cut off").await;
    browser
        .reads("#findings", "older than feed.stale_after (2 s)")
        .await;
    browser.picture("cut-off").await;
    browser.click("#refresh [type=submit]").await;
    browser
        .reads("#order", "Not done: Postgres cannot be reached.")
        .await;
    cluster.start();
    browser.until(GOOD).await;
    browser.reads("#tile-error", "healed").await;

    node.kill();
    let told = "document.querySelector('#verdict-title').innerText.includes('hears nothing')";
    browser.within(SOON, told).await;
    browser.reads("#contact", "no contact for").await;
    node.start();
    browser.until(GOOD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tcp_the_page_asks_for_the_token_and_keeps_it_for_the_tab() {
    let db = Cluster::shared().database().await;
    let (port, mut node) = (free_port(), Node::prepare(&db.url(), ""));
    let token = "a-token-of-these-tests-0123456789";
    std::fs::write(node.path("token"), token).unwrap();
    std::process::Command::new("chmod")
        .arg("600")
        .arg(node.path("token"))
        .status()
        .unwrap();
    let more = format!(
        "[admin]\ntcp = \"127.0.0.1:{port}\"\ntoken_file = \"{}\"\n",
        node.path("token").display()
    );
    node.configure(&db.url(), &more);
    node.start();
    node.synced().await;
    let url = format!("http://localhost:{port}/");
    let browser = Browser::open("en").await;
    browser.go(&url).await;
    browser
        .until(
            "document.querySelector('#token').open && document.activeElement.id === 'token-value'",
        )
        .await;
    browser.picture("token").await;
    browser.keys("not-the-token").await;
    browser.keys(ENTER).await;
    browser.reads("#token-wrong", "That was not it.").await;
    browser.keys(token).await;
    browser.keys(ENTER).await;
    browser.until(GOOD).await;
    browser.reload().await;
    browser.until(GOOD).await;
    browser.click("#verify [type=submit]").await;
    browser.reads("#order", "Differences: 0").await;
    let kept = "[location.href, document.cookie, JSON.stringify(localStorage), document.body.innerText].join()";
    let kept = browser.eval(kept).await;
    assert!(!kept.as_str().unwrap().contains(token), "{kept}");
    assert!(
        browser
            .requests()
            .await
            .iter()
            .all(|url| !url.contains(token))
    );
    assert!(!node.log().contains(token));
    is_at_peace_but_for(&browser, "401").await;
}

/// Part of an answer that goes on, as text.
async fn listen(node: &Node, head: &str) -> UnixStream {
    let mut stream = UnixStream::connect(node.path("admin/admin.sock"))
        .await
        .unwrap();
    let request = format!("GET /v1/admin/events HTTP/1.1\r\nHost: localhost\r\n{head}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// Reads until all of these have come.
async fn hears(stream: &mut UnixStream, what: &[&str]) -> String {
    let mut heard = Vec::new();
    until("the stream says it", async || {
        let text = String::from_utf8_lossy(&heard).into_owned();
        if what.iter().all(|what| text.contains(what)) {
            return true;
        }
        assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "{text}");
        false
    })
    .await;
    String::from_utf8(heard).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_told_the_same_second_at_once_are_bounded_in_number_and_end_with_the_node() {
    let db = Cluster::shared().database().await;
    let mut node = Node::with_example(&db, BRISK).await;
    node.level().await;
    let mut first = listen(&node, "").await;
    let head = hears(&mut first, &["event: status", "event: sample"]).await;
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n")
            && head.contains("content-type: text/event-stream\r\n")
            && head.contains("cache-control: no-store\r\n")
            && head.contains("retry: 2000\n\n"),
        "{head}"
    );
    // Who comes later is told at once what the others know.
    let began = std::time::Instant::now();
    let mut others = vec![listen(&node, "").await];
    hears(&mut others[0], &["event: status", "event: sample"]).await;
    assert!(began.elapsed() < Duration::from_millis(700));
    while others.len() < 15 {
        let mut one = listen(&node, "").await;
        hears(&mut one, &["event: status"]).await;
        others.push(one);
    }
    assert_eq!(node.metric("sidetone_page_listeners").await, 16.0);
    let over = node.admin("GET", "/v1/admin/events", "").await;
    assert_eq!(
        (over.status, over.text("/status")),
        (503, "overloaded".to_owned())
    );
    let posted = node.admin("POST", "/v1/admin/events", "{}").await;
    assert_eq!(posted.status, 405);
    // Who only stays connected leaves the others their answers.
    assert_eq!(node.admin("GET", "/v1/admin/status", "").await.status, 200);
    drop(others);
    until("those who left give their places back", async || {
        node.metric("sidetone_page_listeners").await == 1.0
    })
    .await;
    node.signal(rustix::process::Signal::TERM);
    let rest = hears(
        &mut first,
        &["event: end\ndata: {\"reason\":\"stopping\"}\n\n"],
    )
    .await;
    assert!(!rest.contains("null,\"stale\""), "{rest}");
    assert!(node.ended().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_orders_nothing_and_learns_nothing() {
    let db = Cluster::shared().database().await;
    let node = Node::with_example(&db, BRISK).await;
    node.level().await;
    let ask = async |method: &str, path: &str, head: &str| {
        let stream = UnixStream::connect(node.path("admin/admin.sock"))
            .await
            .unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nConnection: close\r\n{head}Content-Length: 15\r\n\r\n{{\"scope\":\"all\"}}"
        );
        exchange(stream, &request).await.unwrap().status
    };
    let own = "Host: localhost:8378\r\n";
    for head in [
        "Origin: http://evil.example\r\nContent-Type: application/json\r\n",
        "Origin: http://localhost:3000\r\nContent-Type: application/json\r\n",
        "Origin: null\r\nContent-Type: text/plain\r\n",
        "Origin: http://localhost:8378\r\nContent-Type: text/plain\r\n",
        "Sec-Fetch-Site: cross-site\r\nContent-Type: application/json\r\n",
        "Sec-Fetch-Site: same-site\r\nContent-Type: application/json\r\n",
    ] {
        let head = format!("{own}{head}");
        assert_eq!(ask("POST", "/v1/admin/refresh", &head).await, 403, "{head}");
        assert_eq!(ask("POST", "/v1/admin/verify", &head).await, 403, "{head}");
    }
    // A name of theirs that leads here.
    for path in ["/", "/v1/admin/status", "/v1/admin/events"] {
        assert_eq!(
            ask("GET", path, "Host: evil.example:8378\r\n").await,
            403,
            "{path}"
        );
    }
    assert_eq!(
        ask(
            "GET",
            "/v1/admin/status",
            &format!("{own}Sec-Fetch-Site: cross-site\r\n")
        )
        .await,
        403
    );
    // A link to the page is followed; the page itself and those who are no browsers may act.
    assert_eq!(
        ask("GET", "/", &format!("{own}Sec-Fetch-Site: cross-site\r\n")).await,
        200
    );
    let page = "Origin: http://localhost:8378\r\nSec-Fetch-Site: same-origin\r\nContent-Type: application/json\r\n";
    assert_eq!(
        ask("POST", "/v1/admin/refresh", &format!("{own}{page}")).await,
        202
    );
    assert_eq!(ask("POST", "/v1/admin/refresh", own).await, 202);
    assert_eq!(node.log().matches("refresh ordered").count(), 2);
    assert!(node.log().contains("admin: a page of another origin"));
}
